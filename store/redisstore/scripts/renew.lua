-- T3: extends leases and records the start of attempts. A lease never gets shorter.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  operation: output sent again is not added twice
-- ARGV[4]  how much output of an attempt is kept, in bytes
-- ARGV[5]  how much longer an offer may wait for its start, in microseconds
-- ARGV[6+] for each lease 9 values: id, epoch, claim, lease in microseconds from now, how
--          long ago the attempt started ('' when it did not), output, worker that must
--          hold it (or ''), session that it moves to (or ''), time limit and margin in
--          microseconds (0 for none): from its start, or from the claim before that, the
--          lease is not extended beyond. One that was granted anew after an outage, and not heard
--          of since, keeps the length that it was granted
--
-- Answers {now, then for each lease: code, start}; codes: 0 the token is not that of the
-- claim in force, 1 recorded. start is when the attempt in force started, 0 before.
local op, keep = ARGV[3], tonumber(ARGV[4])
local out = {now}
local leases = {}
-- What is written, by task: several words on one lease count in order.
local heads, logs = {}, {}
-- Until when no lease is reaped; read when it is needed.
local calm

local function renew(i)
  local id = ARGV[i]
  local head = heads[id] or call('HGET', task_key .. id, F.head)
  if not head then return 0, 0 end
  local claim = claim_of(head)
  if claim ~= ARGV[i + 2] or claim == NOBODY or number_at(head, P.epoch) ~= tonumber(ARGV[i + 1]) then return 0, 0 end
  if ARGV[i + 6] ~= '' and ARGV[i + 6] ~= tail_of(head) then return 0, 0 end
  local till, started = parse('>dd', head, P.till)
  local claimed = number_at(head, P.claimed)
  local starts = started == 0 and ARGV[i + 4] ~= ''
  -- The worker's word on when counts as far as it can be true.
  if starts then started = math.max(claimed, math.min(now, now - ARGV[i + 4])) end
  local wanted, limit = now + ARGV[i + 3], tonumber(ARGV[i + 8])
  if limit > 0 then
    local last = (started > 0 and started or claimed + ARGV[5]) + limit
    if number_at(head, P.heard) ~= generation then
      calm = calm or tonumber(call('HGET', meta, M.calm) or '0')
      last = math.max(calm, last)
    end
    wanted = math.min(wanted, last)
  end
  if wanted > till then
    till = wanted
    push(leases, leases_key, int(till), id)
  end
  if starts then
    local lane = lane_of(head)
    count(lane, 'q', -1)
    count(lane, 'r', 1)
  end
  head = splice(head, P.till, pack('>ddd', till, started, generation))
  if ARGV[i + 7] ~= '' then head = splice(head, P.session, ARGV[i + 7]) end
  local text = ARGV[i + 5]
  if text ~= '' then
    if logs[id] then
      logs[id] = sub(logs[id] .. text, -keep)
    elseif sub(head, P.move, P.move + 7) ~= op then
      logs[id] = longer(id, number_at(head, P.attempts) + 1, text, keep)
    end
  end
  heads[id] = head
  return 1, started
end

for i = 6, #ARGV, 9 do
  local code, started = renew(i)
  out[#out + 1] = code
  out[#out + 1] = started
end
touch({leases_key, base .. K.stats})
for id, head in pairs(heads) do
  if logs[id] then
    call('HSET', base .. K.log .. id, int(number_at(head, P.attempts) + 1), logs[id])
    head = splice(splice(head, P.logs, '\1'), P.move, op)
  end
  call('HSET', task_key .. id, F.head, head)
end
flush('ZADD', leases)
write_counts()
return out
