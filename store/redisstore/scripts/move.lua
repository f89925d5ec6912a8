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
    if call('PEXPIRE', key, ttl) == 0 then ok = false end
  end)
  return ok
end

-- output keeps what the attempt that ended printed last.
local function output(i, id, h)
  local text, attempt = ARGV[i + 12], ARGV[i + 13]
  if attempt == '' then
    if h.logs > 0 then call('HDEL', base .. K.log .. id, int(h.attempts + 1)) end
    return
  end
  if text ~= '' then
    keep_log(id, attempt, text, keep)
    h.logs = 1
  end
  if h.logs > 0 and tonumber(attempt) > keep_attempts then
    call('HDEL', base .. K.log .. id, int(tonumber(attempt) - keep_attempts))
  end
end

local function finish(i, id, key, h)
  if h.argsin ~= '' then chunks(K.args, id, h.argsin, function(k) call('UNLINK', k) end) end
  if h.argssize > 0 then call('HDEL', key, F.args) end
  h.argsin, h.resultin = '', ARGV[i + 15]
  push(add, base .. K.done, ARGV[i + 10], id)
  if ARGV[i + 11] ~= '' then push(rem, base .. K.deadlines, id) end
  call('PEXPIRE', key, ttl)
  if h.logs > 0 then call('PEXPIRE', base .. K.log .. id, ttl) end
  if h.request ~= '' then call('PEXPIRE', base .. K.request .. h.request, ttl) end
end

local function move(i)
  local id = ARGV[i]
  local key = task_key .. id
  local packed = call('HGET', key, F.head)
  if not packed then
    -- Nothing may point at a record that is gone.
    for _, name in ipairs({K.leases, K.deadlines, K.delayed, K.ids, K.done}) do push(rem, base .. name, id) end
    return {0}
  end
  local h = read_head(packed)
  if h.move == op then return {2} end
  if h.epoch ~= tonumber(ARGV[i + 1]) or h.claim ~= ARGV[i + 2] or h.startedat ~= tonumber(ARGV[i + 3]) then
    local now_is = call('HMGET', key, F.head, F.spec, F.state)
    return {1, now_is[1], now_is[2], now_is[3]}
  end
  if ARGV[i + 4] == 'l' and h.till > now then return {3} end
  if ARGV[i + 15] ~= '' and not complete(id, ARGV[i + 15]) then return {4} end
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
    finish(i, id, key, h)
  else
    count(h.lane, 'q', 1)
    if to == 'd' then
      push(add, base .. K.delayed, ARGV[i + 10], id)
    else
      push(add, base .. K.ready .. h.lane, h.place, id)
    end
  end
  if ARGV[i + 14] ~= '' then
    call('HSET', key, F.head, pack_head(h), F.state, ARGV[i + 7], F.result, ARGV[i + 14])
  else
    call('HSET', key, F.head, pack_head(h), F.state, ARGV[i + 7])
  end
  return {2}
end

for i = 8, #ARGV, 16 do out[#out + 1] = move(i) end
flush('ZREM', rem)
flush('ZADD', add)
write_counts()
return out
