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
-- ARGV[8+] for each task 17 values: id; epoch, claim and start that it was computed from;
--          guard ('l': only if the lease has run out; 's' and a session: only while that
--          one holds the claim); holder (or ''); new epoch, new
--          state, attempts started; where to ('r' ready, 'd' delayed, 'f' finished); when
--          (due or finished, microseconds); has a deadline ('1' or ''); output; attempt
--          that it belongs to ('' for none: what is kept for the next one is dropped);
--          small result ('' for none); where a large result is (or ''); tally of a task
--          that ends ('' without an owner)
--
-- Answers {now, then for each task {code, record ...}}; codes: 0 no such task, 1 it has
-- changed and is now as in head, spec and state, 2 done, 3 the guard does not hold, 4 the
-- large result is missing. A caller whose clock is ahead of the store's gets {now} alone.
local op, keep, ttl, keep_attempts = ARGV[3], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
if tonumber(ARGV[4]) > now + 1000000 then return {now} end
local out = {now}
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

-- decide says what becomes of an item; code 2 with what was read means to write it. It
-- reads what write needs, and notes the keys that it changes.
local function decide(i)
  local id = ARGV[i]
  local head = call('HGET', task_key .. id, F.head)
  if not head then return {0} end
  if sub(head, P.move, P.move + 7) == op then return {2} end
  local till, started = parse('>dd', head, P.till)
  local claim, epoch, attempts = claim_of(head), parse('>dd', head, P.epoch)
  if claim ~= ARGV[i + 2] or epoch ~= tonumber(ARGV[i + 1]) or started ~= tonumber(ARGV[i + 3]) then
    local is = call('HMGET', task_key .. id, F.head, F.spec, F.state)
    return {1, is[1], is[2], is[3]}
  end
  local guard = ARGV[i + 4]
  if guard == 'l' and till > now then return {3} end
  if sub(guard, 1, 1) == 's' and sub(guard, 2) ~= sub(head, P.session, P.session + 15) then return {3} end
  if ARGV[i + 15] ~= '' and not complete(id, ARGV[i + 15]) then return {4} end
  local lane, request, argsin = texts_of(head)
  local t = {i, head, claim, started, attempts, lane, request, argsin, byte(head, P.logs)}
  if ARGV[i + 13] ~= '' and ARGV[i + 12] ~= '' then t.text = longer(id, tonumber(ARGV[i + 13]), ARGV[i + 12], keep) end
  lanes[lane] = true
  if t[9] > 0 then will[#will + 1] = base .. K.log .. id end
  if ARGV[i + 9] == 'f' then
    if argsin ~= '' then chunks(K.args, id, argsin, function(key) will[#will + 1] = key end) end
    if request ~= '' then will[#will + 1] = base .. K.request .. request end
    if ARGV[i + 16] ~= '' then usage_keys(ARGV[i + 16], will) end
  end
  return {2}, t
end

-- output keeps what the attempt that ended printed last, and says whether any is kept.
local function output(i, id, t)
  local logs, attempt = t[9], tonumber(ARGV[i + 13])
  if t.text then
    call('HSET', base .. K.log .. id, int(attempt), t.text)
    logs = 1
  end
  if logs > 0 and not attempt then
    call('HDEL', base .. K.log .. id, int(t[5] + 1))
  elseif logs > 0 and attempt > keep_attempts then
    call('HDEL', base .. K.log .. id, int(attempt - keep_attempts))
  end
  return logs
end

local function finish(i, id, logs, request, argsin)
  call('HDEL', task_key .. id, F.args)
  if argsin ~= '' then chunks(K.args, id, argsin, function(key) call('UNLINK', key) end) end
  if ARGV[i + 15] ~= '' then chunks(K.result, id, ARGV[i + 15], function(key) call('PEXPIRE', key, ttl) end) end
  push(add, base .. K.done, ARGV[i + 10], id)
  if ARGV[i + 11] ~= '' then push(rem, base .. K.deadlines, id) end
  call('PEXPIRE', task_key .. id, ttl)
  if logs > 0 then call('PEXPIRE', base .. K.log .. id, ttl) end
  if request ~= '' then call('PEXPIRE', base .. K.request .. request, ttl) end
end

-- recount replaces the tally of a task that ends. One that is missing was lost, or the task
-- was recorded by a build that did not count: it is not counted now either.
local function recount(id, lane, tally)
  local was = call('HGET', task_key .. id, F.tally)
  if not was then return end
  tally = in_round(tally)
  use_task(was, lane, -1)
  use_task(tally, lane, 1)
  call('HSET', task_key .. id, F.tally, tally)
end

local NO_LEASE = string.rep('\0', P.deadline - P.claimed)

local function write(t)
  local i, head, claim, lane, logs = t[1], t[2], t[3], t[6], t[9]
  local id, to = ARGV[i], ARGV[i + 9]
  count(lane, t[4] > 0 and 'r' or 'q', -1)
  if claim ~= NOBODY then
    push(rem, leases_key, id)
    push(rem, held_key, ARGV[i + 5] .. claim .. id)
    logs = output(i, id, t)
  else
    push(rem, base .. K.ready .. lane, id)
    push(rem, base .. K.delayed, id)
  end
  if to == 'f' then
    finish(i, id, logs, t[7], t[8])
    if ARGV[i + 16] ~= '' then recount(id, lane, ARGV[i + 16]) end
  else
    count(lane, 'q', 1)
    if to == 'd' then
      push(add, base .. K.delayed, ARGV[i + 10], id)
    else
      push(add, base .. K.ready .. lane, int(number_at(head, P.place)), id)
    end
  end
  head = sub(head, 1, P.local - 1) .. '\0' .. string.char(logs) .. sub(head, P.birth, P.move - 1) .. op .. NOBODY .. NOBODY
    .. sub(head, P.place, P.epoch - 1) .. pack('>dd', tonumber(ARGV[i + 6]), tonumber(ARGV[i + 8])) .. NO_LEASE
    .. sub(head, P.deadline, parse('>H', head, P.tail) - 1) .. ARGV[i + 15]
  if ARGV[i + 14] ~= '' then
    call('HSET', task_key .. id, F.head, head, F.state, ARGV[i + 7], F.result, ARGV[i + 14])
  else
    call('HSET', task_key .. id, F.head, head, F.state, ARGV[i + 7])
  end
end

local todo = {}
for i = 8, #ARGV, 17 do
  local answer, t = decide(i)
  out[#out + 1] = answer
  if t then
    todo[#todo + 1] = t
  elseif answer[1] == 0 then
    -- Nothing may point at a record that is gone.
    for _, name in ipairs({K.leases, K.deadlines, K.delayed, K.ids, K.done}) do push(rem, base .. name, ARGV[i]) end
  end
end
for lane in pairs(lanes) do will[#will + 1] = base .. K.ready .. lane end
touch(will)
for _, t in ipairs(todo) do write(t) end
flush('ZREM', rem)
flush('ZADD', add)
write_counts()
write_usage()
return out
