-- Searches a log for an event, from the newest entry back.
--
-- KEYS  [1] the log
-- ARGV  [1] id of the event  [2] position to begin at, '+': the newest
--       [3] the most entries to look at
-- reply [1] position of the event, '' when it was not found
--       [2] position to go on from, '' when the log ended
local may = redis.pcall('PERSIST', KEYS[1] .. ':none') -- on a replica, as in read.lua
if type(may) == 'table' and may.err and string.find(may.err, 'READONLY', 1, true) then return may end
local want = '{"id":"' .. ARGV[1] .. '"'
local page = redis.call('XREVRANGE', KEYS[1], ARGV[2], '-', 'COUNT', ARGV[3])
for _, entry in ipairs(page) do
  if string.sub(entry[2][2] or '', 1, #want) == want then return {entry[1], ''} end
end
if #page < tonumber(ARGV[3]) then return {'', ''} end
return {'', '(' .. page[#page][1]}
