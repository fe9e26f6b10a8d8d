-- KEYS: holders, info, queue
-- ARGV: channel
local held = redis.call('ZCARD', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2])
if held > 0 then
  redis.pcall('PUBLISH', ARGV[1], redis.call('ZRANGE', KEYS[3], 0, 0)[1] or '')
end
return held
