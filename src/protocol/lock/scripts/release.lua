-- KEYS: holders, info, queue, alive, done, then those of releases that need not be remembered any more
-- ARGV: member, how long that is remembered (ms), channel, whether it is a semaphore (1)
local call = redis.call
local me = ARGV[1]

-- Removing comes first: neither this write nor one after it is refused when memory is short. If
-- the token is still among the holders, no other caller has acquired the lock since, even if the
-- lease has ended: every acquisition first removes the holders whose lease has ended.
local function remove()
  local held = call('ZREM', KEYS[1], me)
  call('HDEL', KEYS[2], me)
  return held
end

-- The lock is released even if the user has no right to publish: waiters also send requests
-- without a message.
local function wake(token)
  redis.pcall('PUBLISH', ARGV[3], token)
end

-- The keys have a time to live, so they may stay if the user has no right to delete them.
if KEYS[6] then
  redis.pcall('DEL', unpack(KEYS, 6))
end

-- Nearly always no waiter is queued, and this release was not sent before.
if ARGV[4] ~= '1' and call('EXISTS', KEYS[5], KEYS[3]) == 0 then
  local held = remove()
  call('SET', KEYS[5], held, 'PX', ARGV[2])
  if held == 1 then
    wake('')
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
local held = remove()
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
  wake(head or '')
end
return held
