-- Appends events to logs and publishes each on the log's channel. This is one atomic step, so the
-- order in a log is the order on its channel.
--
-- A call takes effect once. The caller is a producer: it numbers its calls, has one under way at a
-- time, and repeats it unchanged until there is an answer. The hash beside each log keeps, by
-- producer, '<number> <time in ms> <answer>' of the last call. A repeated call gets that answer,
-- and only what failed is tried again. A call that comes late, behind a newer number, does nothing.
--
-- KEYS  for each log: the log, its hash; then for each Idempotent event a marker of each of its
--       logs, a key that has the event's position
-- ARGV  [1] how many logs  [2] producer  [3] number of the call  [4] PUBLISH or SPUBLISH
--       [5] lifetime of a marker in ms
--       for each log: channel, number of events to keep, bytes of events to keep (0: no bound),
--       lifetime in ms after the last use (0: for ever), least epoch of a new log
--       for each run of events: n, where, and n events as JSON without position; where is the number
--       of a log, or '<log>,<log>,…|<index of the first marker in KEYS, or nothing>|<also>'. A '!'
--       behind the number of a log says that the log ends with the event.
-- reply for each log a string. '+<position>': all its events were appended, one behind the other,
--       from this position on. Otherwise it has a line for each event:
--         '+<position>'          appended
--         '=<position>'          was there already
--         '~<position> <error>'  appended, but PUBLISH failed, or the SET of the marker
--         '!<error>'             not appended; 'ENDED …' where one of its logs has ended
-- The script raises no error once something was appended. An event that fails in one of its logs is
-- not appended to those behind it.
--
-- An entry's field 'also' says where the event is in the logs that come earlier in the order of the
-- publish: '<channel>@<position>', with blanks between. Its message has a member 'also' with the
-- same text. The message's member 'prev' is the hash's field 'last' from before the append. It
-- shows a reader that a message is missing between two, even where the positions follow one
-- another. That happens when a new master lacks the newest entries and gives their positions again.
--
-- The last event of a log has the field 'final', and its message the member. The field 'ended' of
-- the hash has its position. Then the log takes no event that it does not have.

local sub, byte = string.sub, string.byte
local producer, call, publish, markerLife = ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- What the call has for each log. items says what became of its events: the bare position of an
-- event that was appended, else the event's line of the reply. alike is true while '+<position>'
-- can answer for all of them. fresh is true where the hash does not know the producer yet.
local logs, a = {}, 6
for i = 1, tonumber(ARGV[1]) do
  local log = {key = KEYS[2 * i - 1], hash = KEYS[2 * i], channel = ARGV[a], keep = ARGV[a + 1],
    most = tonumber(ARGV[a + 2]), life = ARGV[a + 3], least = ARGV[a + 4], items = {}, alike = true}
  a = a + 5
  logs[i] = log
  local known = pcall('HMGET', log.hash, 'epoch', 'last', producer, 'bytes', 'ended', 'until')
  if known.err then
    log.err = known.err
  else
    log.epoch, log.prev, log.fresh = known[1], known[2], not known[3]
    log.bytes, log.ended, log.upto = tonumber(known[4] or 0), known[5], tonumber(known[6] or 0)
    if known[3] then
      local of, answer = match(known[3], '^(%d+) %d+ (.*)$')
      if tonumber(of) > tonumber(call) then return redis.error_reply('LATE a newer call of this producer has run') end
      if of == call then
        log.answer = answer
        log.alike = not find(answer, '\n', 1, true)
      end
    end
    if not log.epoch or log.ended and pcall('EXISTS', log.key) == 0 then
      begin(log)
      log.answer, log.alike = nil, true
    end
    log.id = log.epoch and log.epoch .. '-*'
  end
end

-- The item of the i-th event of a log as an earlier attempt of this call has left it; nil where
-- there was none, or the event failed.
local function answered(log, i)
  if not log.answer then return nil end
  if not log.before then
    log.before = {}
    for line in string.gmatch(log.answer, '[^\n]+') do log.before[#log.before + 1] = line end
    log.epochBefore, log.seqBefore = match(log.answer, '^%+(%d+)-(%d+)$')
  end
  local line = log.before[i]
  if log.epochBefore then return log.epochBefore .. '-' .. number(log.seqBefore + i - 1) end
  if line and line ~= '!' then return byte(line) == 43 and sub(line, 2) or line end -- 43 is '+'
end

-- Appends an event to a log and publishes it. The result is the event's item.
local function append(log, event, also, trims, ends)
  local at, err = add(log, event, also, trims, ends)
  if not at then return '!' .. err end
  -- The message is made in one expression: each string on the way would cost as much as a command.
  local message
  if log.prev and also == '' and not ends then
    message = sub(event, 1, -2) .. ',"position":"' .. at .. '","prev":"' .. log.prev .. '"}'
  else
    message = sub(event, 1, -2) .. ',"position":"' .. at .. (also == '' and '' or '","also":"' .. also) ..
      (ends and '","final":true' or '"') .. (log.prev and ',"prev":"' .. log.prev .. '"}' or '}')
  end
  log.prev = sub(event, 36, 43) -- An event begins with '{"id":"' and a UUID.
  local rung = pcall(publish, log.channel, message)
  if type(rung) == 'table' then return '~' .. at .. ' ' .. rung.err end
  return at
end

-- The item of an event that has a marker, nil where the log does not have the event: there is no
-- marker, or it is of another epoch, so that its log was lost.
local function marked(log, key)
  local at = pcall('GET', key) -- foreign.lua can have put more behind the position
  if type(at) == 'table' then return '!' .. at.err end
  if at and match(at, '^%d+') == log.epoch then return '=' .. at end
end

-- Drops what the hash says where the log alone was lost. An error of EXISTS does not say so.
local function verify(log)
  log.verified = true
  if log.err or pcall('EXISTS', log.key) ~= 0 then return end
  begin(log)
  log.answer = nil
end

-- Brings an event into its logs. It looks at what is known in all of them before it appends to any.
-- ends says which of them end with it.
local function place(event, where, ends, marker, also)
  local items, failed = {}, nil
  for i, log in ipairs(where) do
    if not log.verified then verify(log) end
    local n = #log.items + 1
    items[i] = answered(log, n) or marker and not log.err and marked(log, KEYS[marker + i - 1])
    log.items[n] = items[i] or ''
    if not items[i] and log.ended then failed = failed or '!' .. ended(log) end
  end
  -- The logs that have the event come first, so that the entries in the others name them in also.
  for _, known in ipairs({true, false}) do
    for i, log in ipairs(where) do
      if (items[i] and true or false) == known then
        local item = items[i] or failed or append(log, event, also, true, ends[i])
        local at = match(item, '^[=~]?(%d+-%d+)')
        if at and marker and not known then
          local set = pcall('SET', KEYS[marker + i - 1], at, 'PX', markerLife)
          if set.err then item = '~' .. at .. ' ' .. set.err end
        end
        log.items[#log.items] = item
        log.alike = log.alike and item == at
        if at then
          also = also .. (also == '' and '' or ' ') .. log.channel .. '@' .. at
        else
          failed = failed or item
        end
      end
    end
  end
end

while a < #ARGV do
  local n, where = tonumber(ARGV[a]), ARGV[a + 1]
  local log = logs[tonumber(where)]
  local last = a + 1 + n
  if log and not log.answer then -- The usual case: one log, and no earlier attempt.
    local items = log.items
    for i = a + 2, last do
      local item = append(log, ARGV[i], '', i == last)
      items[#items + 1] = item
      if byte(item) > 57 or byte(item) < 48 then log.alike = false end -- 48 to 57 are the digits
    end
  else
    local of, marker, also = match(where .. '||', '^([%d,!]+)|(%d*)|([^|]*)')
    local list, ends = {}, {}
    for i, final in string.gmatch(of, '(%d+)(!?)') do
      list[#list + 1] = logs[tonumber(i)]
      ends[#list] = final == '!'
    end
    for i = a + 2, last do place(ARGV[i], list, ends, tonumber(marker), also) end
  end
  a = last + 1
end

-- Removes producers that were not heard of for an hour, among two random fields. Each new producer
-- calls it, so that old ones do not pile up.
local function sweep(hash, now)
  local fields = pcall('HRANDFIELD', hash, 2, 'WITHVALUES')
  for i = 1, #fields, 2 do
    local since = match(fields[i + 1], '^%d+ (%d+) ')
    if since and now - since > hour then pcall('HDEL', hash, fields[i]) end
  end
end

local replies, now = {}, millis()
for i, log in ipairs(logs) do
  local items, answer = log.items, nil
  if log.alike then
    replies[i] = items[1] and '+' .. items[1] or ''
    answer = replies[i]
  else
    local kept = {} -- The hash needs no text of errors: these events are tried again.
    for n, item in ipairs(items) do
      local at = match(item, '^~?(%d+-%d+)')
      if item == at then items[n] = '+' .. at end
      kept[n] = at and '+' .. at or byte(item) == 33 and '!' or item -- 33 is '!'
    end
    replies[i], answer = table.concat(items, '\n'), table.concat(kept, '\n')
  end
  local life = tonumber(log.life)
  local upto = life == 0 and 2^53 or now + life
  local lives = log.last and log.upto >= upto - math.min(life / 16, 1000)
  if log.last then
    answer = call .. ' ' .. number(now) .. ' ' .. answer
    if lives then note(log, producer, answer) else note(log, producer, answer, 'until', number(upto)) end
    if log.fresh then sweep(log.hash, now) end
  end
  -- This comes behind all appends: once a script has written, Redis lets it write where memory is
  -- full. A master that became a replica refuses, so it gives no answer from its hash. It refuses
  -- appends, too.
  local set = not lives and extend(log.key, log.hash, log.life)
  if type(set) == 'table' and find(set.err, 'READONLY', 1, true) then return set end
end
return replies
