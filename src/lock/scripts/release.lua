-- KEYS: holders, info, queue, alive, done
-- ARGV: member, how long that is remembered (ms), channel
local holders, info, queue, alive, done = unpack(KEYS)
local me = ARGV[1]
local before = redis.call('GET', done)
if before then
  return tonumber(before)
end
local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local ends = redis.call('ZSCORE', holders, me)
local held = 0
if ends and tonumber(ends) > now then
  held = 1
end
-- Removing comes first: it is not refused when memory is short, nor what follows a write.
redis.call('ZREM', holders, me)
redis.call('HDEL', info, me)
local waited, head = 0, nil
local in_line = redis.call('EXISTS', queue) == 1
if in_line then
  waited = redis.call('ZREM', queue, me)
  redis.call('ZREM', alive, me)
end
redis.call('SET', done, held, 'PX', ARGV[2])
if in_line then
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', now)) do
    redis.call('ZREM', alive, dead)
    redis.call('ZREM', queue, dead)
  end
  head = redis.call('ZRANGE', queue, 0, 0)[1]
end
if ends or (waited == 1 and head) then
  redis.call('PUBLISH', ARGV[3], head or '')
end
return held
