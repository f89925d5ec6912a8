-- T1: records new tasks as ready, or as delayed.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  operation: the same call sent again is answered like the first time
-- ARGV[4]  the store time that the caller assumed
-- ARGV[5]  the head of the records up to the place
-- ARGV[6+] for each task 14 values: id, key mode ('' no idempotency key, 'k' the key is in
--          this shard, 'r' it was reserved before), key, digest, head after the
--          place, spec, state, lane, priority (0 is served first), small arguments, where
--          large ones are (or ''), deadline (or ''), not before (or ''), tally ('' without an
--          owner); a key mode that ends in '-' only looks for what is known
--
-- Answers {now, then for each task: code, id}; codes: 0 recorded, 1 known under its key,
-- 2 the key was used for something else, 3 the id is in use, 4 large arguments are
-- missing, 5 it is not known, and nothing more was asked. A caller whose clock is ahead of the store's gets {now} alone and tries again.
local op, front = ARGV[3], ARGV[5]
if tonumber(ARGV[4]) > now + 1000000 then return {now} end
local out = {now}

local function complete(id, place)
  local ok = true
  chunks(K.args, id, place, function(key)
    if call('EXISTS', key) == 0 then ok = false end
  end)
  return ok
end

-- recorded says that a task was recorded by this very call.
local function recorded(head) return sub(head, P.birth, P.birth + 7) == op end

-- What earlier items of this call will record, by key and by id.
local keys_taken, ids_taken = {}, {}

-- decide says what becomes of an item; code 0 with a third value means to record it.
local function decide(i)
  local id, mode, key, digest = ARGV[i], sub(ARGV[i + 1], 1, 1), ARGV[i + 2], ARGV[i + 3]
  local row = mode == 'k' and (keys_taken[key] or call('GET', base .. K.request .. key))
  if row then
    local known = sub(row, 1, 16)
    if sub(row, 17) ~= digest then return 2, known end
    local head = known == id and not keys_taken[key] and call('HGET', task_key .. id, F.head)
    return head and recorded(head) and 0 or 1, known
  end
  if ids_taken[id] then return 3, id end
  local head = call('HGET', task_key .. id, F.head)
  if head then
    if recorded(head) then return 0, id end
    local _, request = texts_of(head)
    return mode == 'r' and request == key and 1 or 3, id
  end
  if #ARGV[i + 1] > 1 then return 5, id end
  local place = ARGV[i + 10]
  if place ~= '' and not complete(id, place) then return 4, id end
  if mode == 'k' then keys_taken[key] = id .. digest end
  ids_taken[id] = true
  return 0, id, true
end

local ready, delayed, deadlines, ids = {}, {}, {}, {}

local function record(i, seq)
  local id, key, lane, args = ARGV[i], ARGV[i + 2], ARGV[i + 7], ARGV[i + 9]
  local score = ARGV[i + 8] * P.priority + seq
  local record_key, head = task_key .. id, front .. pack('>d', score) .. ARGV[i + 4]
  if ARGV[i + 6] ~= '' then
    call('HSET', record_key, F.head, head, F.spec, ARGV[i + 5], F.args, args, F.state, ARGV[i + 6])
  elseif args ~= '' then
    call('HSET', record_key, F.head, head, F.spec, ARGV[i + 5], F.args, args)
  else
    call('HSET', record_key, F.head, head, F.spec, ARGV[i + 5])
  end
  if ARGV[i + 10] ~= '' then
    chunks(K.args, id, ARGV[i + 10], function(chunk) call('PERSIST', chunk) end)
  end
  if ARGV[i + 13] ~= '' then
    local tally = in_round(ARGV[i + 13])
    call('HSET', record_key, F.tally, tally)
    use_task(tally, lane, 1)
  end
  if ARGV[i + 1] == 'k' then call('SET', base .. K.request .. key, id .. ARGV[i + 3]) end
  local notbefore = ARGV[i + 12]
  if notbefore ~= '' and tonumber(notbefore) > now then
    push(delayed, base .. K.delayed, notbefore, id)
  else
    push(ready, base .. K.ready .. lane, int(score), id)
  end
  if ARGV[i + 11] ~= '' then push(deadlines, base .. K.deadlines, ARGV[i + 11], id) end
  push(ids, ids_key, 0, id)
  count(lane, 'q', 1)
end

local fresh, lanes, usage = {}, {}, {}
for i = 6, #ARGV, 14 do
  local code, id, new = decide(i)
  out[#out + 1] = code
  out[#out + 1] = id
  if new then
    fresh[#fresh + 1] = i
    lanes[base .. K.ready .. ARGV[i + 7]] = true
    if ARGV[i + 13] ~= '' then usage_keys(ARGV[i + 13], usage) end
  end
end
if #fresh > 0 then
  local will = {base .. K.delayed, base .. K.deadlines, ids_key, base .. K.stats}
  for key in pairs(lanes) do will[#will + 1] = key end
  touch(will)
  touch(usage)
  local seq = call('HINCRBY', meta, M.seq, #fresh) - #fresh
  for n, i in ipairs(fresh) do record(i, seq + n) end
  flush('ZADD', ready)
  flush('ZADD', delayed)
  flush('ZADD', deadlines)
  flush('ZADD', ids)
  write_counts()
  write_usage()
end
return out
