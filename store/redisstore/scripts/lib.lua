-- The head of every script. Names that begin with K, M, F and P and a dot stand for keys,
-- fields of meta, fields of a task and positions in its head: see keys.go and head.go.
--
-- KEYS[1]  the meta key of the tag; all other keys are made from it, so that one script
--          stays within one hash slot
-- ARGV[1]  the store's identity
-- ARGV[2]  now in microseconds, or empty for the server's own clock
--
-- Every script answers an array that begins with the time it used, in microseconds.
-- Numbers stay below 2^53, where Lua's are exact.

local call, format, sub, byte = redis.call, string.format, string.sub, string.byte
local pack, parse = struct.pack, struct.unpack
local meta = KEYS[1]
local base = sub(meta, 1, -1 - #K.meta)

-- int writes a whole number as a command wants it.
local function int(n) return format('%d', n) end

local clock = call('TIME')
local real = clock[1] * 1000000 + clock[2]
local now = real
if ARGV[2] ~= '' then now = tonumber(ARGV[2]) end

-- A server that was flushed or replaced must not be taken for the store.
local about = call('HMGET', meta, M.identity, M.generation)
if ARGV[1] ~= '' and about[1] ~= ARGV[1] then
  return redis.error_reply('TREADLEIDENTITY the store was flushed or replaced')
end
local generation = tonumber(about[2] or '0')

-- NOBODY is the claim and the session in the head of a task that nobody holds.
local NOBODY = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

-- Keys that are made for every task.
local task_key, leases_key, held_key, ids_key = base .. K.task, base .. K.leases, base .. K.held, base .. K.ids

-- What stands in a head. splice puts text in the place of as many bytes.
local function number_at(head, at) return (parse('>d', head, at)) end
local function claim_of(head) return sub(head, P.claim, P.claim + 15) end
local function lane_of(head) return (parse('>Hc0', head, P.texts)) end
local function tail_of(head) return sub(head, (parse('>H', head, P.tail))) end
local function splice(head, at, text) return sub(head, 1, at - 1) .. text .. sub(head, at + #text) end

-- texts_of returns lane, idempotency key and the place of large arguments.
local function texts_of(head) return parse('>Hc0Hc0Hc0', head, P.texts) end

-- touch looks at keys that will be written. While a Cluster moves a slot, every command on
-- a key that is not on this node fails and ends the script. So a script first reads or
-- touches everything that it will write: it fails before its first write or not at all.
local function touch(keys)
  if #keys > 0 then call('EXISTS', unpack(keys)) end
end

-- push adds one or two values to the batch of a key; flush sends all batches with one
-- command each.
local function push(batches, key, a, b)
  local list = batches[key]
  if not list then
    list = {}
    batches[key] = list
  end
  list[#list + 1] = a
  if b then list[#list + 1] = b end
end

local function flush(command, batches)
  for key, list in pairs(batches) do
    call(command, key, unpack(list))
  end
end

-- count adds to the counters of unfinished tasks; write_counts stores them and drops
-- those that come to nothing.
local counts = {q = {}, r = {}}
local function count(lane, kind, n)
  local c = counts[kind]
  c[lane] = (c[lane] or 0) + n
end

local function write_counts()
  local key = base .. K.stats
  for kind, lanes in pairs(counts) do
    for lane, n in pairs(lanes) do
      local field = lane .. '\0' .. kind
      if n ~= 0 and call('HINCRBY', key, field, n) == 0 then call('HDEL', key, field) end
    end
  end
end

-- tallied takes a task's tally apart: 'u' while it is unfinished and 'f' afterwards, the bytes
-- that are counted for it, its owner.
local function tallied(tally) return string.match(tally, '^(%a)(%d+):(.*)$') end

-- rounds is the letter case of tallies: 'l' lower, 'u' upper; 'lu' and 'ul' while what owners
-- have is counted anew, from the first to the second. Tallies in the second are in the new
-- count, too. in_round writes a tally in the case that is in force.
local round
local function rounds()
  round = round or call('HGET', meta, M.round) or 'l'
  return round
end

local function in_round(tally)
  local case = sub(rounds(), -1) == 'u' and string.upper or string.lower
  return case(sub(tally, 1, 1)) .. sub(tally, 2)
end

-- use counts what an owner has more of, by the name of a hash and its field; write_usage
-- stores it and drops what comes to nothing.
local used = {}
local function use(name, field, n)
  local u = used[name]
  if not u then
    u = {}
    used[name] = u
  end
  u[field] = (u[field] or 0) + n
end

local function write_usage()
  for name, fields in pairs(used) do
    local key = base .. name
    for field, n in pairs(fields) do
      if n ~= 0 then
        local is = call('HINCRBY', key, field, int(n))
        if is <= 0 then
          call('HDEL', key, field)
        elseif is == n and round then
          call('SADD', base .. K.owners, sub(name, #K.usage + 1))
        end
      end
    end
  end
end

-- use_task counts a task as its tally says, n times: once for a new tally, minus once for
-- one that is no longer in force; anew only, for one that is counted and not in the new count.
local function use_task(tally, lane, n, anew)
  local kind, bytes, owner = tallied(tally)
  local function count_in(name)
    use(name, 'b', n * tonumber(bytes))
    if kind == 'u' or kind == 'U' then
      use(name, 't', n)
      use(name, 'q' .. string.match(lane, '^%Z*'), n)
    end
  end
  if not anew then count_in(K.usage .. owner) end
  if #rounds() == 2 and in_round(tally) == tally then count_in(K.recount .. owner) end
end

-- usage_keys adds the keys that counting a tally may write.
local function usage_keys(tally, keys)
  local _, _, owner = tallied(tally)
  keys[#keys + 1] = base .. K.usage .. owner
  keys[#keys + 1] = base .. K.recount .. owner
  keys[#keys + 1] = base .. K.owners
end

-- promote makes delayed tasks that are due ready, at most limit, and returns their lanes.
local function promote(limit)
  local delayed_key = base .. K.delayed
  local due = call('ZRANGEBYSCORE', delayed_key, '-inf', int(now), 'LIMIT', 0, limit)
  if #due == 0 then return {} end
  local lanes, seen, ready = {}, {}, {}
  for _, id in ipairs(due) do
    local head = call('HGET', task_key .. id, F.head)
    if head then
      local lane = lane_of(head)
      local key = base .. K.ready .. lane
      push(ready, key, int(number_at(head, P.place)), id)
      if not seen[lane] then
        seen[lane] = true
        lanes[#lanes + 1] = lane
        touch({key})
      end
    end
  end
  flush('ZADD', ready)
  call('ZREM', delayed_key, unpack(due))
  return lanes
end

-- chunks calls fn with each key of a large value that is described as "writer:count".
local function chunks(kind, id, place, fn)
  local writer, n = string.match(place, '^(.*):(%d+)$')
  for i = 0, n - 1 do fn(base .. kind .. id .. ':' .. writer .. ':' .. i) end
end

-- longer is the output of an attempt with more text after it, of which the end is kept.
local function longer(id, attempt, text, limit)
  local kept = (call('HGET', base .. K.log .. id, int(attempt)) or '') .. text
  if #kept > limit then kept = sub(kept, -limit) end
  return kept
end
