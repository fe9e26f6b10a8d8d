-- KEYS: holders, info, done of the new token, done of the former token, and of a semaphore alive
-- ARGV: former member, new member, lease (ms; 0: not extended), label (empty: the former one), how long
--       the former member is refused (ms; 0: no request of it is in flight), channel, fencing token
-- Gives a hold to another token. Returns its fencing token, the time left of the lease and whether it has a
-- label; 0: it is not held; -1: released already.
local call = redis.call
local holders, info, former, me = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local time = call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)

local ends = tonumber(call('ZSCORE', holders, me) or '')
if not ends then
  -- Given back already: this request was late.
  if call('EXISTS', KEYS[3]) == 1 then
    return {-1}
  end
  ends = tonumber(call('ZSCORE', holders, former) or '')
  if not ends or ends <= now then
    return {0}
  end
  local theirs = ARGV[4] == '' and call('HGET', info, former) or ARGV[7] .. ':' .. ARGV[4]
  -- A server that is short of memory refuses a script only at its first write.
  call('ZADD', holders, ends, me)
  if string.match(theirs, ':.') then
    call('HSET', info, me, theirs)
  end
  call('ZREM', holders, former)
  call('HDEL', info, former)
  if ARGV[5] ~= '0' then
    call('SET', KEYS[4], 0, 'PX', ARGV[5])
  end
end
if ends <= now then
  return {0}
end
if ARGV[3] ~= '0' then
  local before = ends
  ends = now + tonumber(ARGV[3])
  call('ZADD', holders, ends, me)
  if ends < before then
    -- Waiters ask again when the former lease ends: one of them has to know the new end.
    redis.pcall('PUBLISH', ARGV[6], '')
  end
end
local last = tonumber(call('ZRANGE', holders, -1, -1, 'WITHSCORES')[2])
call('PEXPIREAT', holders, string.format('%.0f', last))
if KEYS[5] then
  -- The number of permits is kept for as long as a caller waits.
  last = math.max(last, tonumber(call('ZRANGE', KEYS[5], -1, -1, 'WITHSCORES')[2] or 0))
end
call('PEXPIREAT', info, string.format('%.0f', last))
return {ARGV[7], ends - now, call('HEXISTS', info, me)}
