-- T10: removes finished tasks past their retention with everything that belongs to them.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  retention in microseconds
-- ARGV[4+] task ids
--
-- Answers {now, number removed, then for each removed task with an idempotency key: id, key}.
local last = now - tonumber(ARGV[3])
local out = {now, 0}
local gone, rem, owners = {}, {}, {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local finished = call('ZSCORE', base .. K.done, id)
  if finished and tonumber(finished) <= last then
    local is = call('HMGET', task_key .. id, F.head, F.tally)
    local head, tally = is[1], is[2]
    if head and tally then
      -- A build that does not count may have ended it: the tally says what is counted.
      use_task(tally, lane_of(head), -1)
      usage_keys(tally, owners)
    end
    if head then
      local _, request = texts_of(head)
      local place = tail_of(head)
      if request ~= '' then
        local key = base .. K.request .. request
        local row = call('GET', key)
        if row and sub(row, 1, 16) == id then gone[#gone + 1] = key end
        out[#out + 1] = id
        out[#out + 1] = request
      end
      if place ~= '' then chunks(K.result, id, place, function(key) gone[#gone + 1] = key end) end
      if byte(head, P.logs) > 0 then gone[#gone + 1] = base .. K.log .. id end
      gone[#gone + 1] = task_key .. id
    end
    push(rem, base .. K.done, id)
    push(rem, ids_key, id)
    out[2] = out[2] + 1
  end
end
touch({base .. K.done, ids_key})
touch(gone)
touch(owners)
for _, key in ipairs(gone) do call('UNLINK', key) end
flush('ZREM', rem)
write_usage()
return out
