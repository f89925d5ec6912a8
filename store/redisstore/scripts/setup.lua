-- Makes the store known to itself when it is new, or says what it is.
--
-- KEYS[1]  meta of {NAMESPACE} or of a shard
-- ARGV[1]  empty (there is no identity to check yet)
-- ARGV[3]  identity to write when there is none, or empty to only look
-- ARGV[4]  format
-- ARGV[5]  number of shards
--
-- Answers {now, identity, format, shards, complete}; identity is nil when there is none.
if ARGV[3] ~= '' and not about[1] then
  call('HSET', meta, M.identity, ARGV[3], M.format, ARGV[4], M.shards, ARGV[5])
end
local h = call('HMGET', meta, M.identity, M.format, M.shards, M.complete)
return {now, h[1], h[2], h[3], h[4]}
