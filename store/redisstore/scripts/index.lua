-- Adds functions to their index, as builds before it did not.
--
-- KEYS[1]  meta of {NAMESPACE}
-- ARGV[3+] for each function 3 values: id, name, hash of the bytes
--
-- Answers {now}.
for i = 3, #ARGV, 3 do
  local id = ARGV[i]
  if call('HEXISTS', base .. K.functions, id) == 1 then
    call('ZADD', base .. K.functionindex, 0, 'n' .. redis.sha1hex(ARGV[i + 1]) .. id, 0, 'b' .. ARGV[i + 2] .. id)
  end
end
return {now}
