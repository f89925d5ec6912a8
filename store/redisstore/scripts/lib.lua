-- The head of every script, after what keys.go writes: tables of names (K: keys, M: fields
-- of meta, F: fields of a task) and read_head and pack_head, which read and write the head
-- of a task's record.
--
-- KEYS[1]  the meta key of the tag; all other keys are made from it, so that one script
--          stays within one hash slot
-- ARGV[1]  the store's identity
-- ARGV[2]  now in microseconds, or empty for the server's own clock
--
-- Every script answers an array that begins with the time it used, in microseconds.
-- Numbers stay below 2^53, where Lua's are exact.

local call = redis.call
local format = string.format
local meta = KEYS[1]
local base = string.sub(meta, 1, -1 - #K.meta)

local function int(n) return format('%.0f', n) end

local clock = call('TIME')
local real = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = real
if ARGV[2] ~= '' then now = tonumber(ARGV[2]) end

-- A server that was flushed or replaced must not be taken for the store.
local head = call('HMGET', meta, M.identity, M.generation)
if ARGV[1] ~= '' and head[1] ~= ARGV[1] then
  return redis.error_reply('TREADLEIDENTITY the store was flushed or replaced')
end
local generation = tonumber(head[2] or '0')

-- What stands in a head where nobody holds the task.
local NOBODY = string.rep('\0', 16)

-- Keys that are made for every task.
local task_key, leases_key, held_key, ids_key = base .. K.task, base .. K.leases, base .. K.held, base .. K.ids

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

-- promote makes delayed tasks that are due ready, at most limit, and returns their lanes.
local function promote(limit)
  local delayed_key = base .. K.delayed
  local lanes, seen, ready = {}, {}, {}
  local due = call('ZRANGEBYSCORE', delayed_key, '-inf', int(now), 'LIMIT', 0, limit)
  for _, id in ipairs(due) do
    local packed = call('HGET', task_key .. id, F.head)
    if packed then
      local h = read_head(packed)
      local key = base .. K.ready .. h.lane
      push(ready, key, h.place, id)
      if not seen[h.lane] then
        seen[h.lane] = true
        lanes[#lanes + 1] = h.lane
        touch({key})
      end
    end
  end
  flush('ZADD', ready)
  if #due > 0 then call('ZREM', delayed_key, unpack(due)) end
  return lanes
end

-- chunks calls fn with each key of a large value that is described as "writer:count".
local function chunks(kind, id, place, fn)
  local writer, n = string.sub(place, 1, -1 - #string.match(place, ':%d+$')), tonumber(string.match(place, '%d+$'))
  for i = 0, n - 1 do fn(base .. kind .. id .. ':' .. writer .. ':' .. i) end
end

-- tail_of is the output of an attempt with more text after it, of which the end is kept.
local function tail_of(id, attempt, text, limit)
  local kept = (call('HGET', base .. K.log .. id, int(attempt)) or '') .. text
  if #kept > limit then kept = string.sub(kept, -limit) end
  return kept
end
