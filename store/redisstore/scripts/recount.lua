-- Counts anew what owners have in a shard, while everything goes on: see use_task.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  'begin', 'step' or 'end'
-- ARGV[4]  begin: how far back the last count must be, in microseconds by the server's clock
--          (-1: any time); else the number that begin answered
-- ARGV[5+] step: task ids
--
-- Answers {now, number of the count}; 0 when there is nothing to do, or it is over.
local number = tonumber(call('HGET', meta, M.roundnumber) or '0')
local owners = call('SMEMBERS', base .. K.owners)

local function keys_of()
  local keys = {base .. K.owners}
  for _, owner in ipairs(owners) do
    keys[#keys + 1] = base .. K.usage .. owner
    keys[#keys + 1] = base .. K.recount .. owner
  end
  for i = 1, #keys, 1000 do call('EXISTS', unpack(keys, i, math.min(i + 999, #keys))) end
end

if ARGV[3] == 'begin' then
  if #owners == 0 then return {now, 0} end
  if #rounds() == 2 then return {now, number} end
  local last = call('HGET', meta, M.recounted)
  if last and real - tonumber(last) < tonumber(ARGV[4]) then return {now, 0} end
  keys_of()
  for _, owner in ipairs(owners) do call('DEL', base .. K.recount .. owner) end
  call('HSET', meta, M.round, rounds() .. (rounds() == 'l' and 'u' or 'l'))
  return {now, call('HINCRBY', meta, M.roundnumber, 1)}
end
if #rounds() ~= 2 or number ~= tonumber(ARGV[4]) then return {now, 0} end
if ARGV[3] == 'step' then
  local todo, keys = {}, {}
  for i = 5, #ARGV do
    local is = call('HMGET', task_key .. ARGV[i], F.head, F.tally)
    if is[1] and is[2] and in_round(is[2]) ~= is[2] then
      todo[#todo + 1] = {ARGV[i], in_round(is[2]), lane_of(is[1])}
      usage_keys(is[2], keys)
    end
  end
  touch(keys)
  for _, t in ipairs(todo) do
    call('HSET', task_key .. t[1], F.tally, t[2])
    use_task(t[2], t[3], 1, true)
  end
  write_usage()
  return {now, number}
end
keys_of()
for _, owner in ipairs(owners) do
  local anew = base .. K.recount .. owner
  if call('EXISTS', anew) == 1 then
    call('RENAME', anew, base .. K.usage .. owner)
  else
    call('DEL', base .. K.usage .. owner)
    call('SREM', base .. K.owners, owner)
  end
end
call('HSET', meta, M.round, sub(rounds(), 2), M.recounted, int(real))
return {now, number}
