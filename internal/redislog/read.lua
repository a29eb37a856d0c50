-- Reads a log from a position on, and begins it where there is none. It is a script so that it can
-- refuse to run on a replica. A client that is set to read from replicas would send a plain read to
-- one, which may lag and still look complete.
--
-- KEYS  [1] the log  [2] its hash
-- ARGV  [1] position to read from, itself included; '-': from the oldest entry
--       [2] the most entries to return  [3] bytes of events after which to stop. The first event
--       does not count, so that a reader always gets on.
--       [4] lifetime in ms (0: for ever)  [5] least epoch of a new log
--       [6] '1': begin no log. Where there is none, the reply has empty strings.
-- reply [1] position of the last append  [2] position of the oldest entry, '' when there is none
--       [3] id of the event at [1], '' when that entry is gone  [4] '1' when the log has ended
--       then lists of entries, as XRANGE gives them
local life = ARGV[4]
if ARGV[6] == '1' then
  local no = readonly(KEYS[2])
  if no then return no end
  if redis.call('EXISTS', KEYS[1]) == 0 then return {'', '', '', ''} end
end
-- To begin a log is the first write, so that Redis refuses it where memory is full.
local last, info = open(KEYS[1], KEYS[2], life, ARGV[5])
if not last then return redis.error_reply(info) end
if not info then return {last, '', '', ''} end
local no = readonly(KEYS[2])
if no then return no end

-- Reading keeps a log alive, one without an event for an hour. While three quarters of the life are
-- left, nothing is written.
if match(last, '%d+$') == '0' and (life == '0' or tonumber(life) > hour) then life = hour end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and (life == '0' or left < life * 3 / 4) then extend(KEYS[1], KEYS[2], life) end

local oldest, top = nil, newest(KEYS[1], info)
for i = 1, #info, 2 do
  if info[i] == 'first-entry' then oldest = info[i + 1] end
end
-- The XINFO of miniredis does not have this entry.
oldest = oldest or redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
-- Only the newest epoch counts. These scripts never add a second one to a log.
local epoch = match(last, '^%d+')
local begin = epoch .. '-1'
if oldest and (match(oldest[1], '^%d+') ~= epoch or match(oldest[1], '%d+$') == '0') then
  oldest = redis.call('XRANGE', KEYS[1], begin, '+', 'COUNT', 1)[1]
end
local id = top and top[1] == last and match(top[2][2] or '', '^{"id":"([^"\\]*)"')
local reply = {last, oldest and oldest[1] or '', id or '', final(top, last) and '1' or ''}

local from, count, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if from == '-' or match(from, '^%d+') ~= epoch or match(from, '%d+$') == '0' then from = begin end
while count > 0 and bytes > 0 do
  -- The step is short because the next entries may be large. An entry that is read and not returned
  -- costs as much as one that is.
  local step = math.min(count, 16)
  local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', step)
  local n, more = #page, #page == step
  for i, entry in ipairs(page) do
    if i > 1 or #reply > 4 then bytes = bytes - #(entry[2][2] or '') end
    if bytes <= 0 then n = math.min(n, i) end
  end
  from = n > 0 and '(' .. page[n][1]
  for i = n + 1, #page do page[i] = nil end
  if n > 0 then reply[#reply + 1] = page end
  if not more then break end
  count = count - n
end
return reply
