-- KEYS: holders, info
local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local first =
  redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if not first[1] then
  return {0, 0, ''}
end
local theirs = redis.call('HGET', KEYS[2], first[1]) or ''
return {1, tonumber(first[2]) - now, string.match(theirs, '^%d+:(.*)$') or ''}
