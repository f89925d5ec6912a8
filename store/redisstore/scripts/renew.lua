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
-- claim in force, 1 recorded. start is when the attempt in force started, '' before.
local op, keep = ARGV[3], tonumber(ARGV[4])
local out = {int(now)}
local leases = {}

local function renew(i)
  local id = ARGV[i]
  local key = base .. K.task .. id
  local h = call('HMGET', key, F.epoch, F.claim, F.till, F.startedat, F.lane, F.attempts, F.move, F.worker)
  if not h[2] or h[1] ~= ARGV[i + 1] or h[2] ~= ARGV[i + 2] then return 0, '' end
  if ARGV[i + 6] ~= '' and ARGV[i + 6] ~= h[8] then return 0, '' end
  local set = {F.heard, generation}
  local till = now + tonumber(ARGV[i + 3])
  if till > tonumber(h[3]) then
    set[#set + 1] = F.till
    set[#set + 1] = int(till)
    push(leases, base .. K.leases, int(till), id)
  end
  local started = h[4] or ''
  if started == '' and ARGV[i + 4] ~= '' then
    started = int(now - tonumber(ARGV[i + 4]))
    set[#set + 1] = F.startedat
    set[#set + 1] = started
    count(h[5], 'q', -1)
    count(h[5], 'r', 1)
  end
  if ARGV[i + 7] ~= '' then
    set[#set + 1] = F.session
    set[#set + 1] = ARGV[i + 7]
  end
  if ARGV[i + 5] ~= '' and h[7] ~= op then
    keep_log(id, tonumber(h[6] or '0') + 1, ARGV[i + 5], keep)
    set[#set + 1] = F.move
    set[#set + 1] = op
  end
  call('HSET', key, unpack(set))
  return 1, started
end

for i = 5, #ARGV, 8 do
  local code, started = renew(i)
  out[#out + 1] = code
  out[#out + 1] = started
end
flush('ZADD', leases)
write_counts()
return out
