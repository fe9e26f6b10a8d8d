-- Works also where another client has put something else in a key's place.
local held = redis.pcall('ZCARD', KEYS[1])
if type(held) ~= 'number' then
  held = redis.call('EXISTS', KEYS[1])
end
-- The number of permits is kept for as long as a caller waits.
local last = redis.pcall('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2]
local permits = last and redis.pcall('HGET', KEYS[2], 'permits')
redis.call('DEL', KEYS[1], KEYS[2])
if type(permits) == 'string' then
  redis.call('HSET', KEYS[2], 'permits', permits)
  redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', tonumber(last)))
end
for _, key in ipairs({KEYS[3], KEYS[4]}) do
  if type(redis.pcall('ZCARD', key)) ~= 'number' then
    redis.call('DEL', key)
  end
end
if held > 0 then
  redis.pcall('PUBLISH', ARGV[2], redis.call('ZRANGE', KEYS[3], 0, 0)[1] or '')
end
return remember(held)
