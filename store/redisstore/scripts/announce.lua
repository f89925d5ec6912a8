-- Shows workers to people, and forgets those that left. It is said again and again.
--
-- KEYS[1]  meta of {NAMESPACE}
-- ARGV[3]  how many are shown
-- ARGV[4+] for each of them its id and its entry, then the ids of those that left
--
-- Answers {now}.
local key, shown = base .. K.fleet, tonumber(ARGV[3])
touch({key})
for i = 4, #ARGV do
  if i >= 4 + 2 * shown then
    call('HDEL', key, ARGV[i])
  elseif i % 2 == 0 then
    call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end
return {now}
