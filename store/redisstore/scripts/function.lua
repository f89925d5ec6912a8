-- Records a function. Its bytes were written before, to expire unless this keeps them.
--
-- KEYS[1]  meta of {NAMESPACE}
-- ARGV[3]  id, ARGV[4] record, ARGV[5] name, ARGV[6] idempotency key (or ''), ARGV[7] its
--          digest, ARGV[8] hash of the bytes, ARGV[9] number of their chunks, ARGV[10]
--          owner (or ''), ARGV[11] size, ARGV[12] queue, ARGV[13] '1' to only look whether
--          it is known under its key, ARGV[14] what makes a transient function one (or '')
--
-- Answers {now, code, record in force}; codes: 0 recorded, 1 known under its key, 2 the key
-- was used for something else, 3 the id is in use, 4 the bytes are missing, 5 it is not
-- known, and nothing more was asked, 6 a transient one is registered, with its id.
local id, record, key = ARGV[3], ARGV[4], ARGV[6]
local known = call('HGET', base .. K.functions, id)
if key ~= '' then
  local row = call('HGET', base .. K.functionrequests, key)
  if row then
    local first = sub(row, 1, 16)
    local have = call('HGET', base .. K.functions, first)
    -- One that is gone has no say: builds that deleted it may not have known of its key.
    if have then
      if sub(row, 17) ~= ARGV[7] then return {now, 2, have} end
      return {now, first == id and 0 or 1, have}
    end
  end
end
local twin = ARGV[14]
if twin ~= '' then
  local first = call('HGET', base .. K.twins, twin)
  if first and first ~= id and call('HEXISTS', base .. K.functions, first) == 1 then
    call('ZADD', base .. K.transients, int(now), first)
    return {now, 6, first}
  end
end
if ARGV[13] == '1' then return {now, 5, false} end
if known then
  -- The same call sent again finds its own record.
  return {now, known == record and 0 or 3, known}
end
local blob = base .. K.blob .. ARGV[8] .. ':'
for i = 0, tonumber(ARGV[9]) - 1 do
  if call('EXISTS', blob .. i) == 0 then return {now, 4, false} end
end
for i = 0, tonumber(ARGV[9]) - 1 do call('PERSIST', blob .. i) end
call('HSET', base .. K.functions, id, record)
call('ZADD', base .. K.functionindex, 0, 'n' .. redis.sha1hex(ARGV[5]) .. id, 0, 'b' .. ARGV[8] .. id)
if twin ~= '' then
  call('HSET', base .. K.twins, twin, id)
  call('ZADD', base .. K.transients, int(now), id)
end
call('HSET', base .. K.names, ARGV[5], id)
call('ZADD', base .. K.functionids, 0, id)
if key ~= '' then call('HSET', base .. K.functionrequests, key, id .. ARGV[7]) end
if ARGV[10] ~= '' then
  use(K.usage .. ARGV[10], 'f', 1)
  use(K.usage .. ARGV[10], 'b', tonumber(ARGV[11]))
  use(K.usage .. ARGV[10], 'q' .. ARGV[12], 1)
  write_usage()
end
return {now, 0, record}
