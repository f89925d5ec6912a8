-- Grants every lease of a shard one fresh lease length, all at once: none that is in force
-- now is reaped before.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  lease length in microseconds
--
-- Answers {now}.
local calm = tonumber(call('HGET', meta, M.calm) or '0')
call('HSET', meta, M.calm, int(math.max(calm, now + tonumber(ARGV[3]))))
call('HINCRBY', meta, M.generation, 1)
return {now}
