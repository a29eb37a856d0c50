-- Appends events to logs and rings the doorbell of each: one atomic step, so that the order in a
-- log is the order on its channel.
--
-- A call takes effect once. Who calls is a producer: it numbers its calls, has one under way at a
-- time, and repeats it unchanged until there is an answer. The hash beside each log keeps by
-- producer '<number> <time in ms> <answer>' of its last call. A repeated call gets that answer, and
-- only what failed is tried again; one that comes late, behind a newer number, does nothing.
--
-- KEYS  for each log: the log, its hash; then a marker for each log of each Idempotent event: a key
--       with the position of the event
-- ARGV  [1] how many logs  [2] producer  [3] number of the call  [4] PUBLISH or SPUBLISH
--       [5] lifetime of a marker in ms
--       for each log: channel, number of events to keep, lifetime in ms after the last use (0: for
--       ever), least epoch of a new log
--       for each run of events: n, where, and n events as JSON without position; where is the number
--       of a log, or '<log>,<log>,…|<number of the first marker, or nothing>|<also>'
-- reply for each log a string: '+<position>' where all its events were appended, one behind the
--       other, from this position on; else a line for each event:
--       '+<position>' appended; '=<position>' was there already; '~<position> <error>' appended, but
--       the doorbell failed; '!<error>' not appended
-- Nothing raises an error once something was appended. An event that fails in one of its logs is not
-- appended to those behind it.
--
-- An entry says in its field 'also' where the event is in the logs before this one, in the order of
-- the publish: '<channel>@<position>', with blanks between. Its message says so, too, and has the
-- field 'last' of the hash, as it was, as 'prev': so a reader notices that it has missed what was
-- appended between two messages, even if the numbers do not show it, because a master that lacked the
-- newest entries has given theirs again.

local sub, byte = string.sub, string.byte
local producer, call, publish, markerLife = ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- Of each log, items is what became of its events: a position for one that was appended, else a line
-- of the reply; and rest is how the next message ends.
local logs, a = {}, 6
for i = 1, tonumber(ARGV[1]) do
  local log = {key = KEYS[2 * i - 1], hash = KEYS[2 * i], channel = ARGV[a], keep = ARGV[a + 1],
    life = ARGV[a + 2], least = ARGV[a + 3], items = {}, alike = true}
  a = a + 4
  logs[i] = log
  local known = pcall('HMGET', log.hash, 'epoch', 'last', producer)
  if known.err then
    log.err = known.err
  else
    log.epoch, log.fresh = known[1], not known[3]
    log.rest = known[2] and '","prev":"' .. known[2] .. '"}' or '"}'
    if known[3] then
      local of, answer = match(known[3], '^(%d+) %d+ (.*)$')
      if tonumber(of) > tonumber(call) then return redis.error_reply('LATE a newer call of this producer has run') end
      if of == call then
        log.answer = answer
        log.alike = not find(answer, '\n', 1, true)
      end
    end
    if not log.epoch then
      local last, err = open(log.key, log.hash, log.life, log.least)
      log.epoch = last and match(last, '^%d+')
      if last then pcall('HSET', log.hash, 'epoch', log.epoch) else log.err = err end
    end
    log.id = log.epoch and log.epoch .. '-*'
  end
end

-- What an earlier attempt of this call has answered for the i-th event of a log, if it did not fail.
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

local function xadd(log, event, also, trim)
  if also ~= '' then
    return pcall('XADD', log.key, 'NOMKSTREAM', 'MAXLEN', '~', log.keep, log.id, 'event', event, 'also', also)
  elseif trim then
    return pcall('XADD', log.key, 'NOMKSTREAM', 'MAXLEN', '~', log.keep, log.id, 'event', event)
  end
  return pcall('XADD', log.key, 'NOMKSTREAM', log.id, 'event', event)
end

-- The log is not what its hash says: it is gone, or somebody else has written to it.
local function reopen(log)
  local last, err = open(log.key, log.hash, log.life, log.least)
  if not last then
    log.err = err
    return
  end
  log.epoch = match(last, '^%d+')
  log.id = log.epoch .. '-*'
  log.rest = '"}'
  pcall('HSET', log.hash, 'epoch', log.epoch)
end

-- Appends an event to a log. Its item.
local function append(log, event, also, trim)
  if log.err then return '!' .. log.err end
  local at = xadd(log, event, also, trim)
  if not at or type(at) == 'table' and find(at.err, 'equal or smaller', 1, true) then
    reopen(log)
    if log.err then return '!' .. log.err end
    at = xadd(log, event, also, trim)
  end
  if type(at) ~= 'string' then
    log.err = at and at.err or 'the log went away'
    return '!' .. log.err
  end
  local message -- made at once: each string costs as much as a command
  if also == '' then
    message = sub(event, 1, -2) .. ',"position":"' .. at .. log.rest
  else
    message = sub(event, 1, -2) .. ',"position":"' .. at .. '","also":"' .. also .. log.rest
  end
  log.rest = '","prev":"' .. sub(event, 36, 43) .. '"}' -- behind '{"id":"' and 28 characters
  log.wrote = true
  local rung = pcall(publish, log.channel, message)
  if type(rung) == 'table' then return '~' .. at .. ' ' .. rung.err end
  return at
end

-- The item of an event that a marker has. A log that was lost since has not got the event.
local function marked(log, key)
  local at = pcall('GET', key)
  if type(at) == 'table' then return '!' .. at.err end
  if at and match(at, '^%d+') == log.epoch then return '=' .. at end
end

-- A log that is lost alone leaves a hash that speaks of what is not there.
local function verify(log)
  log.verified = true
  if log.err or pcall('EXISTS', log.key) ~= 0 then return end -- an error is no word that it is gone
  reopen(log)
  log.answer = nil
end

-- Brings an event into some logs: what is known is looked at in all of them first.
local function place(event, where, marker, also)
  local items = {}
  for i, log in ipairs(where) do
    if not log.verified then verify(log) end
    local n = #log.items + 1
    items[i] = answered(log, n) or marker and not log.err and marked(log, KEYS[marker + i - 1])
    log.items[n] = items[i] or ''
  end
  local failed
  for i, log in ipairs(where) do
    local item = items[i] or failed or append(log, event, also, true)
    local at = match(item, '^[=~]?(%d+-%d+)')
    if at and marker and not items[i] then
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

while a < #ARGV do
  local n, where = tonumber(ARGV[a]), ARGV[a + 1]
  local log = logs[tonumber(where)]
  local last = a + 1 + n
  if log and not log.answer then -- nearly always
    local items = log.items
    for i = a + 2, last do
      local item = append(log, ARGV[i], '', i == last)
      items[#items + 1] = item
      if byte(item) > 57 or byte(item) < 48 then log.alike = false end -- not a digit
    end
  else
    local of, marker, also = match(where .. '||', '^([%d,]+)|(%d*)|([^|]*)')
    local list = {}
    for i in string.gmatch(of, '%d+') do list[#list + 1] = logs[tonumber(i)] end
    for i = a + 2, last do place(ARGV[i], list, tonumber(marker), also) end
  end
  a = last + 1
end

-- A new producer sweeps up behind those that were not heard of for an hour.
local function sweep(hash, now)
  local fields = pcall('HRANDFIELD', hash, 2, 'WITHVALUES')
  for i = 1, #fields, 2 do
    local since = match(fields[i + 1], '^%d+ (%d+) ')
    if since and now - since > hour then pcall('HDEL', hash, fields[i]) end
  end
end

local replies = {}
for i, log in ipairs(logs) do
  local items, answer = log.items, nil
  if log.alike then
    replies[i] = items[1] and '+' .. items[1] or ''
    answer = replies[i]
  else
    local kept = {} -- without the text of errors: they are tried again
    for n, item in ipairs(items) do
      local at = match(item, '^~?(%d+-%d+)')
      if item == at then items[n] = '+' .. at end
      kept[n] = at and '+' .. at or byte(item) == 33 and '!' or item -- 33 is '!'
    end
    replies[i], answer = table.concat(items, '\n'), table.concat(kept, '\n')
  end
  if log.wrote then
    local now = millis()
    pcall('HSET', log.hash, 'last', sub(log.rest, 11, 18), producer, call .. ' ' .. number(now) .. ' ' .. answer)
    if log.fresh then sweep(log.hash, now) end
  end
  -- Behind all appends, since a script that has written is not refused where memory is full. What was
  -- a master once refuses it, before anything is answered from its hash; then nothing was appended.
  local set = extend(log.key, log.hash, log.life)
  if type(set) == 'table' and find(set.err, 'READONLY', 1, true) then return set end
end
return replies
