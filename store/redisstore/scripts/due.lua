-- Finds what is overdue and makes delayed tasks ready. Whoever calls it watches the
-- store; after nobody could for a while every lease gets one more lease length, in which
-- the workers come back.
--
-- KEYS[1]  meta of the shard
-- ARGV[3]  how many of each kind at most
-- ARGV[4]  lease length, ARGV[5] absence, ARGV[6] retention, in microseconds: when the
--          last call is further back than the absence, all leases are granted anew
--
-- Answers {now, absent (1 or 0), generation, {lanes that became ready}, {past their
-- deadline}, {lease ran out}, {past their retention}}.
local limit = tonumber(ARGV[3])
local h = call('HMGET', meta, M.beat, M.calm)
local beat, calm = tonumber(h[1] or real), tonumber(h[2] or '0')
local absent = 0
if real - beat > tonumber(ARGV[5]) then
  absent = 1
  calm = math.max(calm, now + tonumber(ARGV[4]))
  generation = call('HINCRBY', meta, M.generation, 1)
end
call('HSET', meta, M.beat, int(real), M.calm, int(calm))
local function due(key, till)
  return call('ZRANGEBYSCORE', base .. key, '-inf', int(till), 'LIMIT', 0, limit)
end
local lapsed = due(K.leases, now)
if now < calm then
  -- Only those whose holder was heard of since the leases were granted anew.
  local heard = {}
  for _, id in ipairs(lapsed) do
    local head = call('HGET', task_key .. id, F.head)
    if not head or number_at(head, P.heard) == generation then heard[#heard + 1] = id end
  end
  lapsed = heard
end
return {
  now, absent, generation, promote(limit), due(K.deadlines, now), lapsed, due(K.done, now - tonumber(ARGV[6])),
}
