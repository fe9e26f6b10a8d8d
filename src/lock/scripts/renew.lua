-- KEYS: holders, info
-- ARGV: member, lease (ms)
local holders, info, me = KEYS[1], KEYS[2], ARGV[1]
local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local ends = redis.call('ZSCORE', holders, me)
if not ends or tonumber(ends) <= now then
  return 0
end
redis.call('ZADD', holders, 'XX', now + tonumber(ARGV[2]), me)
local last = redis.call('ZRANGE', holders, -1, -1, 'WITHSCORES')
ends = string.format('%.0f', tonumber(last[2]))
redis.call('PEXPIREAT', holders, ends)
redis.call('PEXPIREAT', info, ends)
return 1
