-- T3: extends leases and records the start of attempts. A lease never gets shorter.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  operation: output sent again is not added twice
-- ARGV[4]  how much output of an attempt is kept, in bytes
-- ARGV[5+] for each lease 8 values: id, epoch, claim, lease in microseconds from now, how
--          long ago the attempt started ('' when it did not), output, worker that must
--          hold it (or ''), session that it moves to (or '')
--
-- Answers {now, then for each lease: code, start}; codes: 0 the token is not that of the
-- claim in force, 1 recorded. start is when the attempt in force started, '0' before.
local op, keep = ARGV[3], tonumber(ARGV[4])
local out = {int(now)}
local leases = {}
-- What is written, by task: several words on one lease count in order.
local heads, logs = {}, {}

local function renew(i)
  local id = ARGV[i]
  local h = heads[id]
  if not h then
    local packed = call('HGET', task_key .. id, F.head)
    if not packed then return 0, '0' end
    h = read_head(packed)
  end
  if h.claim ~= ARGV[i + 2] or h.claim == NOBODY or h.epoch ~= tonumber(ARGV[i + 1]) then return 0, '0' end
  if ARGV[i + 6] ~= '' and ARGV[i + 6] ~= h.worker then return 0, '0' end
  heads[id] = h
  h.heard = generation
  local till = now + tonumber(ARGV[i + 3])
  if till > h.till then
    h.till = till
    push(leases, leases_key, till, id)
  end
  if h.startedat == 0 and ARGV[i + 4] ~= '' then
    h.startedat = now - tonumber(ARGV[i + 4])
    count(h.lane, 'q', -1)
    count(h.lane, 'r', 1)
  end
  if ARGV[i + 7] ~= '' then h.session = ARGV[i + 7] end
  local text = ARGV[i + 5]
  if text ~= '' and h.move ~= op then
    logs[id] = logs[id] and string.sub(logs[id] .. text, -keep) or tail_of(id, h.attempts + 1, text, keep)
  end
  return 1, int(h.startedat)
end

for i = 5, #ARGV, 8 do
  local code, started = renew(i)
  out[#out + 1] = code
  out[#out + 1] = started
end
touch({leases_key, base .. K.stats})
for id, h in pairs(heads) do
  if logs[id] then
    call('HSET', base .. K.log .. id, int(h.attempts + 1), logs[id])
    h.logs, h.move = 1, op
  end
  call('HSET', task_key .. id, F.head, pack_head(h))
end
flush('ZADD', leases)
write_counts()
return out
