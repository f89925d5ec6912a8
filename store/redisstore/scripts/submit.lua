-- T1: records new tasks as ready, or as delayed.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  operation: the same call sent again is answered like the first time
-- ARGV[4]  the store time that the caller assumed
-- ARGV[5+] for each task 13 values: id, key mode ('' no idempotency key, 'k' the key is in
--          this shard, 'r' it was reserved in another one), key, digest, spec, state, lane,
--          priority (0 is served first), size of the arguments, small arguments, where
--          large ones are (or ''), deadline (or ''), not before (or '')
--
-- Answers {now, then for each task: code, id}; codes: 0 recorded, 1 known under its key,
-- 2 the key was used for something else, 3 the id is in use, 4 large arguments are
-- missing. A caller whose clock is ahead of the store's gets {now} alone and tries again.
local op = ARGV[3]
if tonumber(ARGV[4]) > now + 1000000 then return {int(now)} end
local out = {int(now)}
local ready, delayed, deadlines, ids = {}, {}, {}, {}

local function complete(id, place)
  local ok = true
  chunks(K.args, id, place, function(key)
    if call('EXISTS', key) == 0 then ok = false end
  end)
  if ok then chunks(K.args, id, place, function(key) call('PERSIST', key) end) end
  return ok
end

local function record(i)
  local id, mode, key, digest = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local record_key = base .. K.task .. id
  local row = mode == 'k' and call('GET', base .. K.request .. key)
  if row then
    local known = string.sub(row, 1, 16)
    if string.sub(row, 17) ~= digest then return 2, known end
    if known == id and call('HGET', record_key, F.birth) == op then return 0, id end
    return 1, known
  end
  if call('EXISTS', record_key) == 1 then
    if call('HGET', record_key, F.birth) == op then return 0, id end
    if mode == 'r' and call('HGET', record_key, F.request) == key then return 1, id end
    return 3, id
  end
  local lane, place = ARGV[i + 6], ARGV[i + 10]
  if place ~= '' and not complete(id, place) then return 4, id end
  local seq = call('HINCRBY', meta, M.seq, 1)
  local score = int(tonumber(ARGV[i + 7]) * 2 ^ PLACE_BITS + seq)
  local h = {F.spec, ARGV[i + 4], F.lane, lane, F.place, score, F.epoch, '0', F.birth, op, F.argssize, ARGV[i + 8]}
  local function set(field, value)
    if value ~= '' then
      h[#h + 1] = field
      h[#h + 1] = value
    end
  end
  set(F.state, ARGV[i + 5])
  set(F.args, ARGV[i + 9])
  set(F.argsin, place)
  set(F.request, key)
  set(F.deadline, ARGV[i + 11])
  call('HSET', record_key, unpack(h))
  if mode == 'k' then call('SET', base .. K.request .. key, id .. digest) end
  local notbefore = ARGV[i + 12]
  if notbefore ~= '' and tonumber(notbefore) > now then
    push(delayed, base .. K.delayed, notbefore, id)
  else
    push(ready, base .. K.ready .. lane, score, id)
  end
  if ARGV[i + 11] ~= '' then push(deadlines, base .. K.deadlines, ARGV[i + 11], id) end
  push(ids, base .. K.ids, 0, id)
  count(lane, 'q', 1)
  return 0, id
end

for i = 5, #ARGV, 13 do
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
