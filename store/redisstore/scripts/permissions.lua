-- Runs every command that the store needs once, on keys of its own that it removes again,
-- and answers what the server refuses to this user: {command, words, command, words ...}.
--
-- KEYS[1]  the name that the keys of the probe begin with
-- ARGV[1]  a channel of the store
-- ARGV[2]  '1' where changes wait for a replica
--
-- What else goes wrong (no memory left, for example) is no matter of permissions.
local hash, set, text, list, other = KEYS[1] .. 'h', KEYS[1] .. 'z', KEYS[1] .. 's', KEYS[1] .. 'm', KEYS[1] .. 'o'
local refused = {}
local function try(...)
  local answer = redis.pcall(...)
  local words = type(answer) == 'table' and answer.err
  if words and (string.find(words, 'NOPERM', 1, true) or string.find(words, 'ACL failure', 1, true)
      or string.find(words, "can't run this command", 1, true) or string.find(words, "can't access", 1, true)
      or string.find(words, 'permission', 1, true) or string.find(words, 'Unknown Redis command', 1, true)) then
    refused[#refused + 1] = (...)
    refused[#refused + 1] = words
  end
end
try('TIME')
try('EXISTS', hash)
try('HSET', hash, 'f', '1')
try('HGET', hash, 'f')
try('HMGET', hash, 'f')
try('HGETALL', hash)
try('HVALS', hash)
try('HEXISTS', hash, 'f')
try('HLEN', hash)
try('HINCRBY', hash, 'f', '1')
try('HDEL', hash, 'f')
try('SET', text, '1')
try('GET', text)
try('PEXPIRE', text, '60000')
try('PERSIST', text)
try('RENAME', text, other)
try('SADD', list, 'm')
try('SMEMBERS', list)
try('SREM', list, 'm')
try('ZADD', set, '0', 'm')
try('ZCARD', set)
try('ZSCORE', set, 'm')
try('ZRANGE', set, '0', '-1')
try('ZRANGEBYSCORE', set, '0', '1')
try('ZRANGEBYLEX', set, '-', '+')
try('ZREVRANGEBYLEX', set, '+', '-')
try('ZREMRANGEBYSCORE', set, '5', '6')
try('ZREM', set, 'm')
try('PUBLISH', ARGV[1], '')
if ARGV[2] == '1' then try('INCR', text) end
try('UNLINK', hash, set, text)
try('DEL', list, other)
return refused
