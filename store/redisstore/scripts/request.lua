-- Keeps idempotency keys where there are several shards: a task may live in another one.
--
-- KEYS[1]  meta of the key's shard
-- ARGV[3]  'reserve' (for a day, until 'keep'), 'keep', 'release' or 'look'
-- ARGV[4+] for each key 3 values: key, digest, task id
--
-- Answers {now, then for each key: code, task id}; codes: 0 done, 1 reserved before for
-- that task, 2 reserved before with another digest, 3 looked, and not reserved.
local out = {now}
for i = 4, #ARGV, 3 do
  local key, row = base .. K.request .. ARGV[i], ARGV[i + 2] .. ARGV[i + 1]
  local have = call('GET', key)
  local code = 0
  if ARGV[3] == 'look' then
    code = not have and 3 or sub(have, 17) == ARGV[i + 1] and 1 or 2
  elseif ARGV[3] == 'reserve' then
    if not have then
      call('SET', key, row, 'PX', 86400000)
    elseif have ~= row then
      code = sub(have, 17) == ARGV[i + 1] and 1 or 2
    end
  elseif have and sub(have, 1, 16) == ARGV[i + 2] then
    call(ARGV[3] == 'keep' and 'PERSIST' or 'DEL', key)
  end
  out[#out + 1] = code
  out[#out + 1] = have and sub(have, 1, 16) or ARGV[i + 2]
end
return out
