-- KEYS: holders, info, queue, alive, done, fence
-- ARGV: member, lease (ms), mode (x, r, w), capacity, label, heartbeat (ms; 0: not fair),
--       whether to queue up, channel
local holders, info, queue, alive, done, fence = unpack(KEYS)
local me, lease, mode, capacity = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local label, heartbeat, channel = ARGV[5], tonumber(ARGV[6]), ARGV[8]
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)

-- Nearly always neither is there, and then there is nothing to look at.
local taken = redis.call('EXISTS', done, holders) > 0
-- Given back already: this request was late.
if taken and redis.call('EXISTS', done) == 1 then
  return {-1}
end

local freed = false
if taken then
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', holders, '-inf', now)) do
    redis.call('ZREM', holders, dead)
    redis.call('HDEL', info, dead)
    freed = true
  end
end

local function keep()
  redis.call('ZADD', holders, now + lease, me)
  local ends = string.format('%.0f', now + lease)
  if taken then
    local last = redis.call('ZRANGE', holders, -1, -1, 'WITHSCORES')
    ends = string.format('%.0f', tonumber(last[2]))
  end
  redis.call('PEXPIREAT', holders, ends)
  redis.call('PEXPIREAT', info, ends)
end

local function wake_head()
  local head = redis.call('ZRANGE', queue, 0, 0)
  if head[1] and head[1] ~= me then
    redis.call('PUBLISH', channel, head[1])
  end
end

if taken and redis.call('ZSCORE', holders, me) then
  local mine = redis.call('HGET', info, me)
  if mine then
    keep()
    return {1, string.match(mine, '^%d+')}
  end
end

if heartbeat > 0 then
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', now)) do
    redis.call('ZREM', alive, dead)
    redis.call('ZREM', queue, dead)
    freed = true
  end
end

local count, first = 0, {}
if taken then
  count = redis.call('ZCARD', holders)
  first = redis.call('ZRANGE', holders, 0, 0, 'WITHSCORES')
end
local room
if mode == 'x' then
  room = count < capacity
elseif mode == 'w' then
  room = count == 0
else
  room = count == 0 or string.sub(first[1], 1, 1) == 'r'
end
local mine_to_take = room
if room and heartbeat > 0 then
  local rank = redis.call('ZRANK', queue, me)
  local ahead = {}
  if rank ~= 0 then
    ahead = redis.call('ZRANGE', queue, 0, rank and rank - 1 or -1)
  end
  if mode == 'x' then
    mine_to_take = count + #ahead < capacity
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
  local counter = tonumber(redis.call('GET', fence) or '0')
  local token = string.format('%.0f', math.max(counter + 1, micros))
  redis.call('SET', fence, token)
  redis.call('HSET', info, me, token .. ':' .. label)
  keep()
  if heartbeat > 0 then
    redis.call('ZREM', queue, me)
    redis.call('ZREM', alive, me)
    if mode == 'r' or (mode == 'x' and count + 1 < capacity) then
      wake_head()
    end
  end
  return {1, token}
end

if heartbeat > 0 then
  if ARGV[7] == '1' then
    redis.call('ZADD', queue, 'NX', string.format('%.0f', micros), me)
    redis.call('ZADD', alive, now + heartbeat, me)
    redis.call('PEXPIRE', queue, heartbeat * 2)
    redis.call('PEXPIRE', alive, heartbeat * 2)
  end
  if room and freed then
    wake_head()
  end
end
if not first[1] then
  return {0, 0, ''}
end
local theirs = redis.call('HGET', info, first[1]) or ''
return {0, math.max(0, tonumber(first[2]) - now), string.match(theirs, '^%d+:(.*)$') or ''}
