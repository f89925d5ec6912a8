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
-- changed and is now as in record, 2 done, 3 the guard does not hold, 4 the large result
-- is missing. A caller whose clock is ahead of the store's gets {now} alone.
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

local function output(i, id)
  local text, attempt = ARGV[i + 12], ARGV[i + 13]
  if attempt == '' then
    call('HDEL', base .. K.log .. id, tonumber(ARGV[i + 8]) + 1)
  elseif text ~= '' then
    keep_log(id, attempt, text, keep)
  end
  if attempt ~= '' and tonumber(attempt) > keep_attempts then
    call('HDEL', base .. K.log .. id, tonumber(attempt) - keep_attempts)
  end
end

local function finish(i, id, key, h, set)
  if h[8] then chunks(K.args, id, h[8], function(k) call('DEL', k) end) end
  call('HDEL', key, F.args, F.argsin)
  if ARGV[i + 14] ~= '' then
    set[#set + 1] = F.result
    set[#set + 1] = ARGV[i + 14]
  end
  if ARGV[i + 15] ~= '' then
    set[#set + 1] = F.resultin
    set[#set + 1] = ARGV[i + 15]
  end
  push(add, base .. K.done, ARGV[i + 10], id)
  if ARGV[i + 11] ~= '' then push(rem, base .. K.deadlines, id) end
  call('PEXPIRE', key, ttl)
  call('PEXPIRE', base .. K.log .. id, ttl)
  if h[9] then call('PEXPIRE', base .. K.request .. h[9], ttl) end
end

local function move(i)
  local id = ARGV[i]
  local key = base .. K.task .. id
  local h = call('HMGET', key, F.epoch, F.claim, F.startedat, F.till, F.move, F.place, F.lane, F.argsin, F.request)
  if not h[1] then
    -- Nothing may point at a record that is gone.
    for _, name in ipairs({K.leases, K.deadlines, K.delayed, K.ids, K.done}) do push(rem, base .. name, id) end
    return {0}
  end
  if h[5] == op then return {2} end
  if h[1] ~= ARGV[i + 1] or (h[2] or '') ~= ARGV[i + 2] or (h[3] or '') ~= ARGV[i + 3] then
    return {1, unpack(call('HMGET', key, unpack(RECORD)), 1, #RECORD)}
  end
  if ARGV[i + 4] == 'l' and tonumber(h[4]) > now then return {3} end
  if ARGV[i + 15] ~= '' and not complete(id, ARGV[i + 15]) then return {4} end
  local lane, to = h[7], ARGV[i + 9]
  local set = {F.epoch, ARGV[i + 6], F.state, ARGV[i + 7], F.attempts, ARGV[i + 8], F.move, op}
  if h[2] then
    call('HDEL', key, unpack(LEASE))
    push(rem, base .. K.leases, id)
    push(rem, base .. K.held, ARGV[i + 5] .. h[2] .. id)
    output(i, id)
  else
    push(rem, base .. K.ready .. lane, id)
    push(rem, base .. K.delayed, id)
  end
  count(lane, h[3] and 'r' or 'q', -1)
  if to == 'f' then
    finish(i, id, key, h, set)
  else
    count(lane, 'q', 1)
    if to == 'd' then
      push(add, base .. K.delayed, ARGV[i + 10], id)
    else
      push(add, base .. K.ready .. lane, h[6], id)
    end
  end
  call('HSET', key, unpack(set))
  return {2}
end

for i = 8, #ARGV, 16 do out[#out + 1] = move(i) end
flush('ZREM', rem)
flush('ZADD', add)
write_counts()
return out
