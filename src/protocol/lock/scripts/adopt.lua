-- KEYS: holders, info, done of the new token, done of the former token, and of a semaphore alive
-- ARGV: former member, new member, lease (ms; 0: not extended), label (empty: the former one), how long
--       the former member is refused (ms; 0: no request of it is in flight), channel
-- Gives a hold to another token. Returns its fencing token and the time left of the lease; 0: it is not
-- held; -1: released already.
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
  local theirs = call('HGET', info, former)
  if not ends or ends <= now or not theirs then
    return {0}
  end
  -- A server that is short of memory refuses a script only at its first write.
  if ARGV[4] ~= '' then
    theirs = string.match(theirs, '^%d+') .. ':' .. ARGV[4]
  end
  call('HSET', info, me, theirs)
  call('ZADD', holders, ends, me)
  call('ZREM', holders, former)
  call('HDEL', info, former)
  if ARGV[5] ~= '0' then
    call('SET', KEYS[4], 0, 'PX', ARGV[5])
  end
end
local mine = call('HGET', info, me)
if ends <= now or not mine then
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
  local last = tonumber(call('ZRANGE', holders, -1, -1, 'WITHSCORES')[2])
  call('PEXPIREAT', holders, string.format('%.0f', last))
  if KEYS[5] then
    -- The number of permits is kept for as long as a caller waits.
    last = math.max(last, tonumber(call('ZRANGE', KEYS[5], -1, -1, 'WITHSCORES')[2] or 0))
  end
  call('PEXPIREAT', info, string.format('%.0f', last))
end
return {string.match(mine, '^%d+'), ends - now}
