-- Counts the tasks among some that are of some functions.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  number of functions, followed by their ids
-- then     task ids; or '' and then lanes: all unfinished tasks of those, if they are few
--          enough to be looked at in one go
--
-- Answers {now, then for each function the number of its tasks}; {now} alone when there are
-- too many.
local n = tonumber(ARGV[3])
local of, at = {}, 4 + n
for i = 1, n do of[ARGV[3 + i]] = i end
local counts = {}
for i = 1, n do counts[i] = 0 end

local function look(id)
  local spec = call('HGET', task_key .. id, F.spec)
  local i = spec and of[sub(spec, 2, 17)]
  if i then counts[i] = counts[i] + 1 end
end

if ARGV[at] == '' then
  local keys, total = {leases_key, base .. K.delayed}, 0
  for i = at + 1, #ARGV do keys[#keys + 1] = base .. K.ready .. ARGV[i] end
  for _, key in ipairs(keys) do total = total + call('ZCARD', key) end
  if total > 5000 then return {now} end
  for _, key in ipairs(keys) do
    for _, id in ipairs(call('ZRANGE', key, 0, -1)) do look(id) end
  end
else
  for i = at, #ARGV do look(ARGV[i]) end
end
return {now, unpack(counts)}
