-- KEYS: holders; info, if it exists; and of a semaphore alive
-- ARGV: member, lease (ms; 0: only checks whether the token holds the lock)
local holders, me = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local ends = redis.call('ZSCORE', holders, me)
if not ends or tonumber(ends) <= now then
  return 0
end
if ARGV[2] == '0' then
  return 1
end
redis.call('ZADD', holders, 'XX', now + tonumber(ARGV[2]), me)
local last = tonumber(redis.call('ZRANGE', holders, -1, -1, 'WITHSCORES')[2])
redis.call('PEXPIREAT', holders, string.format('%.0f', last))
if KEYS[3] then
  -- The number of permits is kept for as long as a caller waits.
  last = math.max(last, tonumber(redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2] or 0))
end
if KEYS[2] then
  redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', last))
end
return 1
