-- T10: removes finished tasks past their retention with everything that belongs to them.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  retention in microseconds
-- ARGV[4+] task ids
--
-- Answers {now, number removed, then for each removed task with an idempotency key: id, key}.
local last = now - tonumber(ARGV[3])
local out = {int(now), 0}
local rem = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local finished = call('ZSCORE', base .. K.done, id)
  if finished and tonumber(finished) <= last then
    local key = task_key .. id
    local packed = call('HGET', key, F.head)
    if packed then
      local h = read_head(packed)
      if h.request ~= '' then
        local row = call('GET', base .. K.request .. h.request)
        if row and string.sub(row, 1, 16) == id then call('DEL', base .. K.request .. h.request) end
        out[#out + 1] = id
        out[#out + 1] = h.request
      end
      if h.resultin ~= '' then chunks(K.result, id, h.resultin, function(k) call('UNLINK', k) end) end
      if h.logs > 0 then call('UNLINK', base .. K.log .. id) end
    end
    call('UNLINK', key)
    push(rem, base .. K.done, id)
    push(rem, ids_key, id)
    out[2] = out[2] + 1
  end
end
flush('ZREM', rem)
return out
