-- Works also where another client has put something else in a key's place.
local held = redis.pcall('ZCARD', KEYS[1])
if type(held) ~= 'number' then
  held = redis.call('EXISTS', KEYS[1])
end
redis.call('DEL', KEYS[1], KEYS[2])
for _, key in ipairs({KEYS[3], KEYS[4]}) do
  if type(redis.pcall('ZCARD', key)) ~= 'number' then
    redis.call('DEL', key)
  end
end
if held > 0 then
  redis.pcall('PUBLISH', ARGV[2], redis.call('ZRANGE', KEYS[3], 0, 0)[1] or '')
end
return remember(held)
