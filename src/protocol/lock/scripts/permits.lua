-- ARGV[3]: permits
-- Changes the number of permits while the semaphore has holders or waiters. Without them the next
-- caller's number holds, and nothing is kept.
local call = redis.call
local time = call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local from = string.format('(%.0f', now)
local function is_empty(key)
  return not call('ZRANGEBYSCORE', key, from, '+inf', 'LIMIT', 0, 1)[1]
end
if is_empty(KEYS[1]) and is_empty(KEYS[4]) then
  call('HDEL', KEYS[2], 'permits')
  return remember(0)
end
call('HSET', KEYS[2], 'permits', ARGV[3])
local last = 0
for _, key in ipairs({KEYS[1], KEYS[4]}) do
  last = math.max(last, tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2] or 0))
end
call('PEXPIREAT', KEYS[2], string.format('%.0f', last))
redis.pcall('PUBLISH', ARGV[2], call('ZRANGE', KEYS[3], 0, 0)[1] or '')
return remember(1)
