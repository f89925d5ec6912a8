-- T2: offers ready tasks to sessions. The same claim id again gets what is still in force
-- under it.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  number of lanes, followed by the lanes
-- then     for each request: claim, holder (hash of the worker), worker, session, local
--          (1 or 0), lease in microseconds, tasks wanted, bytes wanted (0: any number),
--          tasks that this claim got before, number of lanes and their numbers
--
-- Answers {now, {lanes that became ready}, then for each request {code, {tasks past their
-- deadline}, tasks ...}}; a task is {id, head, spec, state, small arguments}. Codes: 0 these are all, 1 the
-- tasks were claimed before, 2 ask again once what is past its deadline has been ended:
-- that is not offered, and it is not for a script to end it.
local lanes = {}
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  lanes[#lanes + 1] = ARGV[at]
  at = at + 1
end
touch({leases_key, held_key})
local out = {now, promote(128)}
local empty = {}
local leases, held, gone = {}, {}, {}

-- read returns the fields of a task that are answered; the first is its head.
local function read(id) return call('HMGET', task_key .. id, F.head, F.spec, F.state, F.args) end

local function answer(id, t) return {id, t[1], t[2], t[3], t[4]} end

-- again lists what a claim still holds.
local function again(claim, holder)
  local prefix = holder .. claim
  local found = {}
  local members = call('ZRANGEBYLEX', held_key, '[' .. prefix, '(' .. prefix .. string.rep('\255', 17))
  for _, member in ipairs(members) do
    local id = sub(member, #prefix + 1)
    local t = read(id)
    if t[1] and claim_of(t[1]) == claim then found[#found + 1] = answer(id, t) end
  end
  return found
end

-- cursor walks the ready tasks of a lane without removing them; peek returns the next one.
local function cursor(lane, step)
  return {key = base .. K.ready .. lanes[lane], lane = lane, step = step, rank = 0, pos = 1, buf = {}}
end

local function peek(c)
  if c.pos > #c.buf and not c.ended then
    c.buf = call('ZRANGE', c.key, c.rank, c.rank + c.step - 1, 'WITHSCORES')
    c.rank, c.pos = c.rank + c.step, 1
    if #c.buf < 2 * c.step then c.ended = true end
    if #c.buf == 0 and c.rank == c.step then empty[c.lane] = true end
  end
  return c.buf[c.pos], tonumber(c.buf[c.pos + 1])
end

-- first finds the cursor whose next task comes first.
local function first(cursors)
  local best, id, score
  for _, c in ipairs(cursors) do
    local member, place = peek(c)
    if member and (not score or place < score) then best, id, score = c, member, place end
  end
  return best, id
end

-- offer writes the head of a task with a claim of r.
local function offer(r, id, t)
  local head = t[1]
  t[1] = sub(head, 1, P.local - 1) .. r.localpool .. sub(head, P.logs, P.claim - 1) .. r.claim .. r.session
    .. sub(head, P.place, P.epoch - 1) .. pack('>d', number_at(head, P.epoch) + 1) .. sub(head, P.attempts, P.claimed - 1)
    .. r.times .. sub(head, P.deadline, parse('>H', head, P.tail) - 1) .. r.worker
  call('HSET', task_key .. id, F.head, t[1])
  push(leases, leases_key, r.till, id)
  push(held, held_key, 0, r.holder .. r.claim .. id)
end

local function serve(r)
  local found = again(r.claim, r.holder)
  if #found > r.before then
    return {1, {}, unpack(found)}
  end
  local cursors = {}
  local step = math.max(4, math.ceil(r.want / math.max(1, #r.lanes)))
  for _, lane in ipairs(r.lanes) do
    if not empty[lane] then cursors[#cursors + 1] = cursor(lane, step) end
  end
  local late, got, offers, size = {}, {}, {}, 0
  local code = 0
  while #got < r.want do
    local c, id = first(cursors)
    if not c then break end
    if #late == 128 then
      code = 2
      break
    end
    local t = read(id)
    local deadline, argssize
    if t[1] then deadline, argssize = parse('>dd', t[1], P.deadline) end
    if deadline and deadline > 0 and deadline <= now then
      late[#late + 1] = id
    else
      if deadline then
        size = size + argssize
        if r.bytes > 0 and size > r.bytes and (#got > 0 or r.before > 0) then break end
        offers[#offers + 1] = {id, t}
        got[#got + 1] = true
      end
      push(gone, c.key, id)
    end
    c.pos = c.pos + 2
  end
  for n, o in ipairs(offers) do
    offer(r, o[1], o[2])
    got[n] = answer(o[1], o[2])
  end
  flush('ZREM', gone)
  gone = {}
  return {code, late, unpack(got)}
end

while at <= #ARGV do
  local r = {
    claim = ARGV[at], holder = ARGV[at + 1], worker = ARGV[at + 2], session = ARGV[at + 3], localpool = ARGV[at + 4] == '1' and '\1' or '\0',
    want = tonumber(ARGV[at + 6]), bytes = tonumber(ARGV[at + 7]),
    before = tonumber(ARGV[at + 8]), lanes = {},
  }
  local till, n = now + tonumber(ARGV[at + 5]), tonumber(ARGV[at + 9])
  r.till, r.times = int(till), pack('>dddd', now, till, 0, generation)
  at = at + 10
  for _ = 1, n do
    r.lanes[#r.lanes + 1] = tonumber(ARGV[at])
    at = at + 1
  end
  out[#out + 1] = serve(r)
  -- A later request must see what this one holds.
  flush('ZADD', leases)
  flush('ZADD', held)
  leases, held = {}, {}
end
return out
