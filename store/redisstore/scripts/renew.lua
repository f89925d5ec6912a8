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

local function renew(i)
  local id = ARGV[i]
  local key = task_key .. id
  local packed = call('HGET', key, F.head)
  local h = packed and read_head(packed)
  if not h or h.claim ~= ARGV[i + 2] or h.claim == NOBODY or h.epoch ~= tonumber(ARGV[i + 1]) then return 0, '0' end
  if ARGV[i + 6] ~= '' and ARGV[i + 6] ~= h.worker then return 0, '0' end
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
  if ARGV[i + 5] ~= '' and h.move ~= op then
    keep_log(id, h.attempts + 1, ARGV[i + 5], keep)
    h.logs, h.move = 1, op
  end
  call('HSET', key, F.head, pack_head(h))
  return 1, int(h.startedat)
end

for i = 5, #ARGV, 8 do
  local code, started = renew(i)
  out[#out + 1] = code
  out[#out + 1] = started
end
flush('ZADD', leases)
write_counts()
return out
