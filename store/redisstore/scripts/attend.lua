-- Notes that a dispatcher is alive, or only looks who is.
--
-- KEYS[1]  meta of {NAMESPACE}
-- ARGV[3]  dispatcher id
-- ARGV[4]  for how long, in microseconds by the server's clock; 0 to only look, -1 to leave
--
-- Answers {now, others that are alive, 1 when this one was known to be}.
local key = base .. K.dispatchers
call('ZREMRANGEBYSCORE', key, '-inf', int(real))
local known = call('ZSCORE', key, ARGV[3]) and 1 or 0
local others = call('ZCARD', key) - known
local ttl = tonumber(ARGV[4])
if ttl > 0 then
  call('ZADD', key, int(real + ttl), ARGV[3])
elseif ttl < 0 then
  call('ZREM', key, ARGV[3])
end
return {now, others, known}
