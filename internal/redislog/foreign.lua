-- Appends events of foreign publishers to the log of one channel. It publishes nothing: who listens
-- to the channel has heard the messages.
--
-- Each process that hears a message makes this call. The first one appends the event, and the
-- others get told where it is. They know it by the channel's marker, which Idempotent leaves, too:
--   <position>
-- On a lone Redis, all channels of an event share another marker, that of its project's channel. It
-- says where the event is, so that each entry can say so in its field 'also', whoever appends it:
--   <position, or nothing>, then for each other channel a blank and '<channel>@<position>'
--
-- KEYS  [1] the log  [2] its hash; then for each event the channel's marker, and the marker that
--       the channels share; in a cluster the first one again, as no other slot can be reached
-- ARGV  [1] channel  [2] number of events to keep  [3] bytes of events to keep (0: no bound)
--       [4] lifetime in ms after the last use (0: for ever)  [5] least epoch of a new log
--       [6] lifetime of a marker in ms; then for each event: the event as JSON without position,
--       '1' where the log ends with it, and what the caller knows for 'also'
-- reply for each event the text of an error, or a list:
--       [1] its position  [2] its also  [3] '1' where the log ends with it  [4] its prev
--       The list has only the position where the log has another text under this id, or none there.

local known = pcall('HMGET', KEYS[2], 'epoch', 'last', 'bytes', 'ended')
if known.err then return known end
local log = {key = KEYS[1], hash = KEYS[2], channel = ARGV[1], keep = ARGV[2],
  most = tonumber(ARGV[3]), life = ARGV[4], least = ARGV[5],
  epoch = known[1], prev = known[2], bytes = tonumber(known[3] or 0), ended = known[4]}
-- Only markers of this life of the log count, so the log must be there.
if not log.epoch or pcall('EXISTS', log.key) == 0 then begin(log) end
if log.err then return redis.error_reply(log.err) end
log.id = log.epoch .. '-*'

-- No more channels than this are noted: no subscription has more.
local most = 40

-- How the id of an event ends. Nothing is said of an id with escapes, and no character is cut.
local function ending(event)
  local id = match(event, '^{"id":"([^"\\]*)"') or ''
  return match(string.sub(id, -8), '[ -~]*$')
end

-- What a marker says: a position or nil, and the other places with a blank before each.
local function marker(key)
  local value = pcall('GET', key)
  if type(value) == 'table' then return nil, nil, value.err end
  return match(value or '', '^%d+%-%d+'), match(value or '', ' .*$') or ''
end

-- The answer for an event that the log has. seen is where the last such event is, and how its id
-- ends. The next one mostly follows it. Then only one entry has to be read.
local seen = {}
local function there(at, event)
  local epoch, seq = match(at, '^(%d+)%-(%d+)$')
  local before = epoch .. '-' .. number(seq - 1)
  local follows = seen.at == before
  local found = pcall('XREVRANGE', log.key, at, '-', 'COUNT', follows and 1 or 2)
  local entry, fields = found[1], {}
  if entry and entry[1] == at then
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  end
  if fields.event ~= event then return {at} end
  local prev = follows and seen.ending or ''
  entry = found[2]
  if entry and entry[1] == before then prev = ending(entry[2][2] or '') end
  seen.at, seen.ending = at, ending(event)
  return {at, fields.also or '', fields.final or '', prev}
end

-- Brings an event into the log, once. own and shared are its markers.
local function place(event, ends, also, own, shared)
  local at, places, err = marker(own)
  if err then return err end
  if at and match(at, '^%d+') == log.epoch then return there(at, event) end
  local first, others = nil, places
  if shared ~= own then
    first, others, err = marker(shared)
    if err then return err end
    if first then also = match(shared, '{([^}]*)}') .. '@' .. first end
  end
  local n = 1
  for other, position in string.gmatch(others, ' (%S+)@(%d+%-%d+)') do
    n = n + 1
    if other ~= log.channel then
      also = also .. (also == '' and '' or ' ') .. other .. '@' .. position
    end
  end
  at, err = add(log, event, also, true, ends)
  if not at then return err end
  pcall('SET', own, at .. places, 'PX', ARGV[6])
  if shared ~= own and n < most then
    pcall('SET', shared, (first or '') .. others .. ' ' .. log.channel .. '@' .. at, 'PX', ARGV[6])
  end
  local prev = log.prev or ''
  log.prev = ending(event)
  return {at, also, ends and '1' or '', prev}
end

local replies = {}
for i = 1, (#KEYS - 2) / 2 do
  local a, k = 3 * i + 4, 2 * i + 1
  replies[i] = place(ARGV[a], ARGV[a + 1] == '1', ARGV[a + 2], KEYS[k], KEYS[k + 1])
end
if log.last then note(log) end
-- A master that became a replica refuses, so it gives no answer from its markers.
local set = extend(log.key, log.hash, log.life)
if type(set) == 'table' and find(set.err, 'READONLY', 1, true) then return set end
return replies
