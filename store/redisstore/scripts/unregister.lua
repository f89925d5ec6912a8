-- Deletes a function. Its bytes expire when no other has the same.
--
-- KEYS[1]  meta of {NAMESPACE}
-- ARGV[3]  id, ARGV[4] record that the caller read, ARGV[5] name, ARGV[6] hash of the bytes,
--          ARGV[7] number of their chunks, ARGV[8] how long they stay, in milliseconds,
--          ARGV[9] idempotency key (or ''), ARGV[10] what makes a transient one (or ''),
--          ARGV[11] owner (or ''), ARGV[12] size, ARGV[13] queue, ARGV[14] delete it only if
--          it was not used later, in microseconds (or '')
--
-- Answers {now, code}; codes: 0 there is no such function, 1 deleted, 2 the index of
-- functions is not complete, 3 it was used since.
local id, name, hash = ARGV[3], ARGV[5], ARGV[6]
local functions, index = base .. K.functions, base .. K.functionindex
if call('HGET', functions, id) ~= ARGV[4] then return {now, 0} end
if call('ZCARD', index) ~= 2 * call('HLEN', functions) then return {now, 2} end
if ARGV[14] ~= '' then
  local used = call('ZSCORE', base .. K.transients, id)
  if used and tonumber(used) > tonumber(ARGV[14]) then return {now, 3} end
end

local function newest(prefix)
  return call('ZREVRANGEBYLEX', index, '[' .. prefix .. string.rep('\255', 17), '[' .. prefix, 'LIMIT', 0, 1)[1]
end

local by_name, by_hash = 'n' .. redis.sha1hex(name), 'b' .. hash
call('ZREM', index, by_name .. id, by_hash .. id)
call('HDEL', functions, id)
call('ZREM', base .. K.functionids, id)
if call('HGET', base .. K.names, name) == id then
  local other = newest(by_name)
  if other then
    call('HSET', base .. K.names, name, sub(other, #by_name + 1))
  else
    call('HDEL', base .. K.names, name)
  end
end
if not newest(by_hash) then
  for i = 0, tonumber(ARGV[7]) - 1 do call('PEXPIRE', base .. K.blob .. hash .. ':' .. i, ARGV[8]) end
end
if ARGV[9] ~= '' then
  local row = call('HGET', base .. K.functionrequests, ARGV[9])
  if row and sub(row, 1, 16) == id then call('HDEL', base .. K.functionrequests, ARGV[9]) end
end
if ARGV[10] ~= '' then
  if call('HGET', base .. K.twins, ARGV[10]) == id then call('HDEL', base .. K.twins, ARGV[10]) end
  call('ZREM', base .. K.transients, id)
end
if ARGV[11] ~= '' then
  use(K.usage .. ARGV[11], 'f', -1)
  use(K.usage .. ARGV[11], 'b', -tonumber(ARGV[12]))
  use(K.usage .. ARGV[11], 'q' .. ARGV[13], -1)
  write_usage()
end
return {now, 1}
