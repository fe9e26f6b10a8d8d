-- KEYS: holders, info
-- Returns the number of held permits, and the number of permits in force (-1: none is kept).
local call = redis.call
local time = call('TIME')
local now = string.format('%.0f', math.floor((time[1] * 1000000 + time[2]) / 1000))
local used
if call('HGET', KEYS[2], 'several') then
  used = 0
  for _, holder in ipairs(call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
    used = used + tonumber(string.match(holder, ':(%d+)$') or 1)
  end
else
  used = call('ZCARD', KEYS[1]) - #call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
end
return {used, tonumber(call('HGET', KEYS[2], 'permits') or -1)}
