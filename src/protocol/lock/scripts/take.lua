-- The fencing token is the server's time in microseconds, or the last token plus 1 if that is larger.
-- This write comes first, because a server that is short of memory refuses a script only at its first
-- write. The token is built as text, because Lua formats numbers slowly. Numbers are exact up to 2^53:
-- once the last token has reached that, no token is given.
local function next_token(fence, time)
  local token = time[1] .. string.sub('00000' .. time[2], -6)
  local last = redis.call('GETSET', fence, token)
  if last and (#last > #token or (#last == #token and last >= token)) then
    local number = string.match(last, '^%d+$') and tonumber(last)
    if not number or number >= 9007199254740992 then
      redis.call('SET', fence, last)
      return nil
    end
    token = string.format('%.0f', number + 1)
    redis.call('SET', fence, token)
  end
  return token
end

-- Takes the lock for a member, and returns its fencing token.
local function take(fence, holders, info, me, label, time, ends)
  local token = next_token(fence, time)
  if token then
    if label ~= '' then
      redis.call('HSET', info, me, token .. ':' .. label)
    end
    redis.call('ZADD', holders, ends, me)
  end
  return token
end

