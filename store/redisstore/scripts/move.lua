-- T4 to T9: writes a move that package task has computed, if the task is still in the
-- state it was computed from. Epoch, claim and start together name that state: every
-- other change of a record changes one of them.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  operation: the same call sent again is answered like the first time
-- ARGV[4]  the store time that the caller assumed
-- ARGV[5]  how much output of an attempt is kept, in bytes
-- ARGV[6]  how long a finished task lasts should nobody remove it, in milliseconds
-- ARGV[7]  how many attempts keep their output
-- ARGV[8+] for each task 16 values: id; epoch, claim and start that it was computed from;
--          guard ('l': only if the lease has run out); holder (or ''); new epoch, new
--          state, attempts started; where to ('r' ready, 'd' delayed, 'f' finished); when
--          (due or finished, microseconds); has a deadline ('1' or ''); output; attempt
--          that it belongs to ('' for none: what is kept for the next one is dropped);
--          small result ('' for none); where a large result is (or '')
--
-- Answers {now, then for each task {code, record ...}}; codes: 0 no such task, 1 it has
-- changed and is now as in head, spec and state, 2 done, 3 the guard does not hold, 4 the
-- large result is missing. A caller whose clock is ahead of the store's gets {now} alone.
local op, keep, ttl, keep_attempts = ARGV[3], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
if tonumber(ARGV[4]) > now + 1000000 then return {int(now)} end
local out = {int(now)}
local add, rem = {}, {}

local function complete(id, place)
  local ok = true
  chunks(K.result, id, place, function(key)
    if call('EXISTS', key) == 0 then ok = false end
  end)
  return ok
end

local lanes = {}
local will = {leases_key, held_key, ids_key, base .. K.delayed, base .. K.deadlines, base .. K.done, base .. K.stats}

-- decide says what becomes of an item; code 2 with the head means to write it. It reads
-- what write needs, and looks at what that removes.
local function decide(i)
  local id = ARGV[i]
  local packed = call('HGET', task_key .. id, F.head)
  if not packed then return {0} end
  local h = read_head(packed)
  if h.move == op then return {2} end
  if h.epoch ~= tonumber(ARGV[i + 1]) or h.claim ~= ARGV[i + 2] or h.startedat ~= tonumber(ARGV[i + 3]) then
    local is = call('HMGET', task_key .. id, F.head, F.spec, F.state)
    return {1, is[1], is[2], is[3]}
  end
  if ARGV[i + 4] == 'l' and h.till > now then return {3} end
  if ARGV[i + 15] ~= '' and not complete(id, ARGV[i + 15]) then return {4} end
  if ARGV[i + 13] ~= '' and ARGV[i + 12] ~= '' then
    h.text = tail_of(id, tonumber(ARGV[i + 13]), ARGV[i + 12], keep)
  end
  lanes[h.lane] = true
  if h.logs > 0 then will[#will + 1] = base .. K.log .. id end
  if ARGV[i + 9] == 'f' then
    if h.argsin ~= '' then chunks(K.args, id, h.argsin, function(key) will[#will + 1] = key end) end
    if h.request ~= '' then will[#will + 1] = base .. K.request .. h.request end
  end
  return {2}, h
end

-- output keeps what the attempt that ended printed last.
local function output(i, id, h)
  local attempt = tonumber(ARGV[i + 13])
  if h.text then
    call('HSET', base .. K.log .. id, int(attempt), h.text)
    h.logs = 1
  end
  if h.logs == 0 then return end
  if not attempt then
    call('HDEL', base .. K.log .. id, int(h.attempts + 1))
  elseif attempt > keep_attempts then
    call('HDEL', base .. K.log .. id, int(attempt - keep_attempts))
  end
end

local function finish(i, id, h)
  if h.argsin ~= '' then chunks(K.args, id, h.argsin, function(key) call('UNLINK', key) end) end
  if h.argssize > 0 then call('HDEL', task_key .. id, F.args) end
  h.argsin, h.resultin = '', ARGV[i + 15]
  if h.resultin ~= '' then chunks(K.result, id, h.resultin, function(key) call('PEXPIRE', key, ttl) end) end
  push(add, base .. K.done, ARGV[i + 10], id)
  if ARGV[i + 11] ~= '' then push(rem, base .. K.deadlines, id) end
  call('PEXPIRE', task_key .. id, ttl)
  if h.logs > 0 then call('PEXPIRE', base .. K.log .. id, ttl) end
  if h.request ~= '' then call('PEXPIRE', base .. K.request .. h.request, ttl) end
end

local function write(i, h)
  local id = ARGV[i]
  count(h.lane, h.startedat > 0 and 'r' or 'q', -1)
  if h.claim ~= NOBODY then
    push(rem, leases_key, id)
    push(rem, held_key, ARGV[i + 5] .. h.claim .. id)
    output(i, id, h)
    h.claim, h.session, h.worker, h.localpool = NOBODY, NOBODY, '', 0
    h.claimedat, h.till, h.startedat, h.heard = 0, 0, 0, 0
  else
    push(rem, base .. K.ready .. h.lane, id)
    push(rem, base .. K.delayed, id)
  end
  h.move, h.epoch, h.attempts = op, tonumber(ARGV[i + 6]), tonumber(ARGV[i + 8])
  local to = ARGV[i + 9]
  if to == 'f' then
    finish(i, id, h)
  else
    count(h.lane, 'q', 1)
    if to == 'd' then
      push(add, base .. K.delayed, ARGV[i + 10], id)
    else
      push(add, base .. K.ready .. h.lane, h.place, id)
    end
  end
  if ARGV[i + 14] ~= '' then
    call('HSET', task_key .. id, F.head, pack_head(h), F.state, ARGV[i + 7], F.result, ARGV[i + 14])
  else
    call('HSET', task_key .. id, F.head, pack_head(h), F.state, ARGV[i + 7])
  end
end

local todo = {}
for i = 8, #ARGV, 16 do
  local answer, h = decide(i)
  out[#out + 1] = answer
  if h then
    todo[#todo + 1] = {i, h}
  elseif answer[1] == 0 then
    -- Nothing may point at a record that is gone.
    for _, name in ipairs({K.leases, K.deadlines, K.delayed, K.ids, K.done}) do push(rem, base .. name, ARGV[i]) end
  end
end
for lane in pairs(lanes) do will[#will + 1] = base .. K.ready .. lane end
touch(will)
for _, t in ipairs(todo) do write(t[1], t[2]) end
flush('ZREM', rem)
flush('ZADD', add)
write_counts()
return out
