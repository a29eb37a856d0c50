-- Reads a log from a position on. A script, because clients that are set to read
-- from replicas send plain reads to a copy that may lag and still look complete; for
-- the same reason it refuses to run on one that it comes to otherwise.
--
-- KEYS  [1] the log
-- ARGV  [1] position to read from, itself included; '-': from the oldest entry
--       [2] the most entries to return; 0: only the state
--       [3] bytes of events after which to stop; the first does not count, so
--       that a reader always gets on
--       [4] position from which on to [1] to give the ids of events, or ''
-- reply [1] Redis time in ms  [2] position of the last append, '' when there is
--       no log  [3] ms until the log is dropped, -1 never
--       [4] position of the oldest entry, '' when there is none
--       [5] id of the event at [2], '' when that is not an entry any more
--       [6] what ARGV[4] asks for: lines of number and id
--       [7] bytes of the larger one of the oldest and the newest event
--       then for each entry: position, event, what it notes (see append.lua)
local may = redis.pcall('PERSIST', KEYS[1] .. ':none') -- a write that changes nothing
if type(may) == 'table' and may.err and string.find(may.err, 'READONLY', 1, true) then return may end
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then
  if string.find(info.err, 'no such key', 1, true) then return {now, '', -1, '', '', '', ''} end
  return info
end
local last, oldest, newest = '', nil, nil
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = info[i + 1] end
  if info[i] == 'first-entry' then oldest = info[i + 1] end
  if info[i] == 'last-entry' then newest = info[i + 1] end
end
-- miniredis does not tell the entries.
oldest = oldest or redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
newest = newest or redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
-- Only the newest epoch counts. Nobody who goes by these scripts adds another to a log
-- that is there, or an entry with number 0.
local epoch = string.match(last, '^%d+')
local begin = epoch .. '-1'
if oldest and (string.match(oldest[1], '^%d+') ~= epoch or string.sub(oldest[1], -2) == '-0') then
  oldest = redis.call('XRANGE', KEYS[1], begin, '+', 'COUNT', 1)[1]
end
local first, id = oldest and oldest[1] or '', ''
if newest and newest[1] == last then
  id = string.match(newest[2][2] or '', '^{"id":"([^"\\]*)"') or ''
end
local ids = {}
if ARGV[4] ~= '' and string.match(ARGV[4], '^%d+') == epoch then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[4], ARGV[1])) do
    ids[#ids + 1] = string.match(entry[1], '%d+$') .. ' ' .. (string.match(entry[2][2] or '', '^{"id":"([^"\\]*)"') or '')
  end
end
local size = math.max(oldest and #(oldest[2][2] or '') or 0, newest and #(newest[2][2] or '') or 0)
local reply = {now, last, redis.call('PTTL', KEYS[1]), first, id, table.concat(ids, '\n'), tostring(size)}
local from, count, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if from == '-' or string.match(from, '^%d+') ~= epoch or string.sub(from, -2) == '-0' then from = begin end
local n, more = #reply, count > 0
while more do
  local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', math.min(count, 32))
  more = #page == 32 and count > 32
  for _, entry in ipairs(page) do
    local fields = entry[2]
    local event, also = fields[2], ''
    if fields[1] ~= 'event' or #fields > 2 then
      event = ''
      for i = 1, #fields, 2 do
        if fields[i] == 'event' then event = fields[i + 1] end
        if fields[i] == 'also' then also = fields[i + 1] end
      end
    end
    if n > 7 then bytes = bytes - #event end
    reply[n + 1], reply[n + 2], reply[n + 3] = entry[1], event, also
    n = n + 3
    if bytes <= 0 then return reply end
  end
  count = count - 32
  if more then from = '(' .. reply[n - 2] end
end
return reply
