-- Searches a log for an event, from the newest entry back, up to a number of entries or bytes.
--
-- KEYS  [1] the log  [2] its hash
-- ARGV  [1] id of the event  [2] position to begin at; '+': the newest entry
--       [3] the most entries to look at  [4] bytes of events after which to stop
-- reply [1] position of the event, '' when it was not found
--       [2] the ARGV[2] to go on with, '' when there is no more  [3] bytes that were looked at
local no = readonly(KEYS[2])
if no then return no end
local want, from, bytes = '{"id":"' .. ARGV[1] .. '"', ARGV[2], 0
for _ = 1, tonumber(ARGV[3]), 8 do
  local page = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', 8)
  for _, entry in ipairs(page) do
    local event = entry[2][2] or ''
    bytes = bytes + #event
    if string.sub(event, 1, #want) == want then return {entry[1], '', bytes} end
  end
  if #page < 8 then return {'', '', bytes} end
  from = '(' .. page[#page][1]
  if bytes > tonumber(ARGV[4]) then break end
end
return {'', from, bytes}
