-- KEYS: holders, info, queue, alive, done, fence
-- ARGV: member, lease (ms), mode (x, r, w), capacity, label, heartbeat (ms; 0: not fair),
--       whether to queue up, channel, for how long the caller counts as waiting (ms; empty: not a
--       semaphore)
-- Returns the fencing token; or 0, the time left (-1: not held) and the holder's label; -1:
-- released already; -2 and the number of permits in force; -3: there is no fencing token left.
local call = redis.call
local me = ARGV[1]
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = string.format('%.0f', now + ARGV[2])

-- Nearly always the lock is free, and nothing else has to be read. The server runs nothing else
-- meanwhile, so each call counts.
local taken = call('EXISTS', KEYS[5], KEYS[1]) > 0
if not taken and ARGV[6] == '0' and ARGV[9] == '' then
  local token = take(KEYS[6], KEYS[1], KEYS[2], me, ARGV[5], time, ends)
  if not token then
    return {-3}
  end
  call('PEXPIREAT', KEYS[1], ends)
  if ARGV[5] ~= '' then
    call('PEXPIREAT', KEYS[2], ends)
  end
  return token
end

local holders, info, queue, alive, done = unpack(KEYS)
local mode, capacity = ARGV[3], tonumber(ARGV[4])
local heartbeat, channel, waits = tonumber(ARGV[6]), ARGV[8], tonumber(ARGV[9])

-- The number of permits that a token takes stands behind its colon; without a colon it is one.
local function permits_of(token)
  return tonumber(string.match(token, ':(%d+)$') or 1)
end
local wants = permits_of(me)

-- Given back already: this request was late.
if taken and call('EXISTS', done) == 1 then
  return {-1}
end

local freed = false
if taken then
  for _, dead in ipairs(call('ZRANGEBYSCORE', holders, '-inf', now)) do
    call('ZREM', holders, dead)
    call('HDEL', info, dead)
    freed = true
  end
end

local function last_of(key)
  return tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2] or 0)
end

-- The keys live for as long as the last of the leases; a semaphore's number of permits also for as
-- long as a caller waits.
local function keep()
  local last = last_of(holders)
  if last > 0 then
    call('PEXPIREAT', holders, string.format('%.0f', last))
  end
  if waits then
    last = math.max(last, last_of(alive))
  end
  call('PEXPIREAT', info, string.format('%.0f', last))
end

local function wake_head()
  local head = call('ZRANGE', queue, 0, 0)
  if head[1] and head[1] ~= me then
    -- A user without the right to publish has taken the lock all the same; waiters ask from
    -- time to time.
    redis.pcall('PUBLISH', channel, head[1])
  end
end

if taken and call('ZSCORE', holders, me) then
  -- The first reply was lost, or will not be read: another fencing token is as good.
  local mine = call('HGET', info, me)
  local token = mine and string.match(mine, '^%d+') or next_token(KEYS[6], time)
  if not token then
    return {-3}
  end
  call('ZADD', holders, ends, me)
  keep()
  return token
end

if heartbeat > 0 or waits then
  for _, dead in ipairs(call('ZRANGEBYSCORE', alive, '-inf', now)) do
    call('ZREM', alive, dead)
    call('ZREM', queue, dead)
    freed = true
  end
end

local count, first = 0, {}
if taken then
  count = call('ZCARD', holders)
  first = call('ZRANGE', holders, 0, 0, 'WITHSCORES')
end
-- Permits that are held. The field is set while a holder may have several.
local used = count
if waits and count > 0 and call('HGET', info, 'several') then
  used = 0
  for _, holder in ipairs(call('ZRANGE', holders, 0, -1)) do
    used = used + permits_of(holder)
  end
end

-- Another number of permits is refused while the semaphore has holders or waiters.
local kept = waits and tonumber(call('HGET', info, 'permits') or '')
if kept and kept ~= capacity and (count > 0 or call('ZCARD', alive) > 0) then
  return {-2, kept}
end

local room
if mode == 'x' then
  room = used + wants <= capacity
elseif mode == 'w' then
  room = count == 0
else
  room = count == 0 or string.sub(first[1], 1, 1) == 'r'
end
local mine_to_take = room
if room and heartbeat > 0 then
  local rank = call('ZRANK', queue, me)
  local ahead = {}
  if rank ~= 0 then
    ahead = call('ZRANGE', queue, 0, rank and rank - 1 or -1)
  end
  if mode == 'x' then
    -- There must be room for all that came before, however many permits each of them takes.
    local asked = used + wants
    for _, other in ipairs(ahead) do
      asked = asked + permits_of(other)
    end
    mine_to_take = asked <= capacity
  elseif mode == 'w' then
    mine_to_take = #ahead == 0
  else
    for _, other in ipairs(ahead) do
      if string.sub(other, 1, 1) ~= 'r' then
        mine_to_take = false
      end
    end
  end
end

if mine_to_take then
  local token = take(KEYS[6], KEYS[1], KEYS[2], me, ARGV[5], time, ends)
  if not token then
    return {-3}
  end
  if waits and kept ~= capacity then
    call('HSET', info, 'permits', capacity)
  end
  if wants > 1 then
    call('HSET', info, 'several', 1)
  end
  if heartbeat > 0 or (waits and call('EXISTS', alive) == 1) then
    call('ZREM', queue, me)
    call('ZREM', alive, me)
  end
  keep()
  if heartbeat > 0 then
    if mode == 'r' or (mode == 'x' and used + wants < capacity) then
      wake_head()
    end
  end
  return token
end

if heartbeat > 0 then
  if ARGV[7] == '1' then
    call('ZADD', queue, 'NX', time[1] .. string.sub('00000' .. time[2], -6), me)
    call('ZADD', alive, now + heartbeat, me)
    call('PEXPIRE', queue, heartbeat * 2)
    call('PEXPIRE', alive, heartbeat * 2)
  end
  if freed and (room or (mode == 'x' and used < capacity)) then
    wake_head()
  end
end
if waits then
  if ARGV[7] == '1' then
    if heartbeat == 0 then
      call('ZADD', alive, now + waits, me)
    end
    -- Fair callers and others: neither shortens the time of the other, and both keys end together, because
    -- a place whose end has gone with `alive` would stay in the queue.
    local last = string.format('%.0f', math.max(last_of(alive), now + heartbeat * 2))
    call('PEXPIREAT', queue, last)
    call('PEXPIREAT', alive, last)
  end
  if not kept then
    call('HSET', info, 'permits', capacity)
  end
  keep()
end
if not first[1] then
  return {0, -1, ''}
end
local theirs = call('HGET', info, first[1]) or ''
return {0, math.max(0, tonumber(first[2]) - now), string.match(theirs, '^%d+:(.*)$') or ''}
