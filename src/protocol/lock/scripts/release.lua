-- KEYS: holders, info, queue, alive, done; with a next holder also fence and its done; then those of
--       releases that need not be remembered any more
-- ARGV: member, how long that is remembered (ms), channel, whether it is a semaphore (1); and if a waiter is
--       to hold the lock next: its member, lease (ms) and label
-- Returns whether the member held the lock; and the fencing token of the next holder, if there is one.
local call = redis.call
local me = ARGV[1]

-- The keys have a time to live, so they may stay if the user has no right to delete them.
local answered = ARGV[5] and 8 or 6
if KEYS[answered] then
  redis.pcall('DEL', unpack(KEYS, answered))
end

-- Gives the lock to a waiter. Only a call that has removed the former holder does: it may be sent again,
-- when others have had the lock. `before`: end of the former holder's lease.
local function hand_over(before)
  local time = call('TIME')
  local last = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[6]
  local ends = string.format('%.0f', last)
  local token = take(KEYS[6], KEYS[1], KEYS[2], ARGV[5], ARGV[7], time, ends)
  call('PEXPIREAT', KEYS[1], ends)
  if ARGV[7] ~= '' then
    call('PEXPIREAT', KEYS[2], ends)
  end
  if token and last < before then
    -- Waiters ask again when the former lease ends: one of them has to know the new end.
    redis.pcall('PUBLISH', ARGV[3], '')
  end
  return token
end

-- Nearly always no waiter is queued, no holder has a label, this release was not sent before, and the waiter
-- has not left.
local special = ARGV[4] == '1' or call('EXISTS', KEYS[5], KEYS[3], KEYS[2], KEYS[ARGV[5] and 7 or 5]) > 0
if not special or (ARGV[4] ~= '1' and call('EXISTS', KEYS[5], KEYS[3]) == 0) then
  -- Removing comes first: neither this write nor one after it is refused when memory is short. If
  -- the token is still among the holders, no other caller has acquired the lock since, even if the
  -- lease has ended: every acquisition first removes the holders whose lease has ended.
  local before = ARGV[5] and tonumber(call('ZSCORE', KEYS[1], me) or 0)
  local held = call('ZREM', KEYS[1], me)
  if special then
    call('HDEL', KEYS[2], me)
  end
  call('SET', KEYS[5], held, 'PX', ARGV[2])
  if held == 1 then
    if ARGV[5] and not (special and call('EXISTS', KEYS[7]) == 1) then
      local given, token = pcall(hand_over, before)
      if given and token then
        return {held, token}
      end
    end
    -- The lock is released even if the user has no right to publish: waiters also send requests
    -- without a message.
    redis.pcall('PUBLISH', ARGV[3], '')
  end
  return held
end

local queue, alive, done = KEYS[3], KEYS[4], KEYS[5]
local before = (ARGV[4] ~= '1' or call('EXISTS', done) == 1) and call('GET', done)
if before then
  return tonumber(before)
end
local time = call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local held = call('ZREM', KEYS[1], me)
call('HDEL', KEYS[2], me)
local waited = call('ZREM', queue, me)
call('ZREM', alive, me)
call('SET', done, held, 'PX', ARGV[2])
for _, dead in ipairs(call('ZRANGEBYSCORE', alive, '-inf', now)) do
  call('ZREM', alive, dead)
  call('ZREM', queue, dead)
end
if ARGV[4] == '1' and call('EXISTS', KEYS[1], alive) == 0 then
  -- The next caller's number of permits holds.
  call('DEL', KEYS[2])
end
local head = call('ZRANGE', queue, 0, 0)[1]
if held == 1 or (waited == 1 and head) then
  redis.pcall('PUBLISH', ARGV[3], head or '')
end
return held
