-- T1: records new tasks as ready, or as delayed.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  operation: the same call sent again is answered like the first time
-- ARGV[4]  the store time that the caller assumed
-- ARGV[5]  the head of the records up to the place
-- ARGV[6+] for each task 13 values: id, key mode ('' no idempotency key, 'k' the key is in
--          this shard, 'r' it was reserved in another one), key, digest, head after the
--          place, spec, state, lane, priority (0 is served first), small arguments, where
--          large ones are (or ''), deadline (or ''), not before (or '')
--
-- Answers {now, then for each task: code, id}; codes: 0 recorded, 1 known under its key,
-- 2 the key was used for something else, 3 the id is in use, 4 large arguments are
-- missing. A caller whose clock is ahead of the store's gets {now} alone and tries again.
local op, front = ARGV[3], ARGV[5]
if tonumber(ARGV[4]) > now + 1000000 then return {int(now)} end
local out = {int(now)}
local ready, delayed, deadlines, ids = {}, {}, {}, {}
-- Numbers that are not used leave gaps, which nobody minds.
local items = (#ARGV - 5) / 13
local seq = call('HINCRBY', meta, M.seq, items) - items

local function complete(id, place)
  local ok = true
  chunks(K.args, id, place, function(key)
    if call('EXISTS', key) == 0 then ok = false end
  end)
  if ok then chunks(K.args, id, place, function(key) call('PERSIST', key) end) end
  return ok
end

-- existing reads the head of a task that exists.
local function existing(record_key)
  local packed = call('HGET', record_key, F.head)
  return packed and read_head(packed)
end

local function record(i)
  local id, mode, key, digest = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local record_key = task_key .. id
  local row = mode == 'k' and call('GET', base .. K.request .. key)
  if row then
    local known = string.sub(row, 1, 16)
    if string.sub(row, 17) ~= digest then return 2, known end
    local h = known == id and existing(record_key)
    return h and h.birth == op and 0 or 1, known
  end
  if call('EXISTS', record_key) == 1 then
    local h = existing(record_key)
    if h.birth == op then return 0, id end
    return mode == 'r' and h.request == key and 1 or 3, id
  end
  local lane, place = ARGV[i + 7], ARGV[i + 10]
  if place ~= '' and not complete(id, place) then return 4, id end
  seq = seq + 1
  local score = tonumber(ARGV[i + 8]) * 2 ^ PLACE_BITS + seq
  local packed = front .. struct.pack('>d', score) .. ARGV[i + 4]
  if ARGV[i + 6] ~= '' then
    call('HSET', record_key, F.head, packed, F.spec, ARGV[i + 5], F.args, ARGV[i + 9], F.state, ARGV[i + 6])
  elseif ARGV[i + 9] ~= '' then
    call('HSET', record_key, F.head, packed, F.spec, ARGV[i + 5], F.args, ARGV[i + 9])
  else
    call('HSET', record_key, F.head, packed, F.spec, ARGV[i + 5])
  end
  if mode == 'k' then call('SET', base .. K.request .. key, id .. digest) end
  local notbefore = ARGV[i + 12]
  if notbefore ~= '' and tonumber(notbefore) > now then
    push(delayed, base .. K.delayed, notbefore, id)
  else
    push(ready, base .. K.ready .. lane, score, id)
  end
  if ARGV[i + 11] ~= '' then push(deadlines, base .. K.deadlines, ARGV[i + 11], id) end
  push(ids, ids_key, 0, id)
  count(lane, 'q', 1)
  return 0, id
end

for i = 6, #ARGV, 13 do
  local code, id = record(i)
  out[#out + 1] = code
  out[#out + 1] = id
end
flush('ZADD', ready)
flush('ZADD', delayed)
flush('ZADD', deadlines)
flush('ZADD', ids)
write_counts()
return out
