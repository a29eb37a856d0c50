-- What append.lua, foreign.lua, read.lua and find.lua share. It stands in front of each of them.
--
-- Beside each log there is a hash. It is made with the log and lives as long, an hour at least.
--   epoch       the log's epoch
--   last        the last 8 characters of the id of the event that was appended last, or less where
--               a foreign publisher has made it: see prev in append.lua
--   ended       the position of the log's last event, if the log has ended
--   bytes, marks  how much was appended: see trim
--   until       the time in ms to which append.lua has extended the log's life. Not every call
--               does so
--   <producer>  number, time and answer of the producer's last call (see append.lua)

local pcall, find, match = redis.pcall, string.find, string.match

local hour = 3600000

local function number(n) return string.format('%.0f', n) end

local function millis()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The error with which a replica refuses a write, nil on a master. A replica must not answer: it
-- may lag. The write that is tried here changes nothing. Its other errors do not keep a master from
-- reading.
local function readonly(hash)
  local set = pcall('PEXPIRE', hash, 1, 'GT')
  if type(set) == 'table' and find(set.err, 'READONLY', 1, true) then return set end
end

-- Lets a log and its hash live for so many ms from now on (0: for ever), the hash an hour at least.
-- A life never becomes shorter. The result is Redis' answer for the log.
local function extend(key, hash, life)
  if life == '0' then
    pcall('PERSIST', hash)
    return pcall('PERSIST', key)
  end
  pcall('PEXPIRE', hash, tonumber(life) > hour and life or hour, 'GT')
  return pcall('PEXPIRE', key, life, 'GT')
end

-- Where a log ends, and its XINFO; nil and the text of the error when that fails. A log that is not
-- there begins, empty, and has no XINFO yet. Its epoch is Redis' time, but more than any epoch that
-- the caller or the hash knows of.
local function open(key, hash, life, least)
  local info = pcall('XINFO', 'STREAM', key)
  if not info.err then
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then return info[i + 1], info end
    end
  end
  if info.err and not find(info.err, 'no such key', 1, true) then return nil, info.err end
  local known = tonumber(pcall('HGET', hash, 'epoch') or 0) or 0
  local epoch = number(math.max(millis(), tonumber(least), known + 1))
  local first = epoch .. '-0'
  -- Where memory is full, Redis refuses a script's first write, but none behind it. So in
  -- append.lua, this comes before the writes to the hash.
  local added = pcall('XADD', key, first, 'event', '')
  if type(added) ~= 'string' then return nil, added.err end
  pcall('XDEL', key, first)
  pcall('DEL', hash)
  pcall('HSET', hash, 'epoch', epoch)
  -- A log without an event lives an hour at most.
  if life == '0' or tonumber(life) > hour then life = hour end
  pcall('PEXPIRE', key, life)
  pcall('PEXPIRE', hash, hour)
  return first
end

-- The newest entry of a log with this XINFO. That of miniredis does not have it.
local function newest(key, info)
  for i = 1, #info, 2 do
    if info[i] == 'last-entry' then return info[i + 1] end
  end
  return redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
end

-- Reports whether the newest entry says that the log ends with it. last is where the log ends.
local function final(entry, last)
  if not entry or entry[1] ~= last then return false end
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'final' then return last end
  end
  return false
end

-- What a script that appends knows of a log is in a table. The call gives key, hash, channel, keep,
-- most, life and least. The hash gives epoch, prev (its field last), bytes, ended and upto (its field
-- until). id is for XADD. err says why nothing can be appended. last is the position of what the call
-- has appended last.

-- Begins a log, or looks at one that is not what its hash says: the hash is gone, the log is gone,
-- or another program has written to it.
local function begin(log)
  local last, info = open(log.key, log.hash, log.life, log.least)
  if not last then
    log.err = info
    return
  end
  log.epoch = match(last, '^%d+')
  log.id = log.epoch .. '-*'
  log.prev, log.upto = nil, 0
  log.ended = info and final(newest(log.key, info), last)
  pcall('HSET', log.hash, 'epoch', log.epoch, 'until', 0)
  if info then pcall('PEXPIRE', log.hash, hour) end -- it is new, and lives as long as extend says
  if log.ended then pcall('HSET', log.hash, 'ended', last) end
end

local function xadd(log, event, also, trims, ends)
  if also ~= '' or ends then
    local fields = {'event', event}
    if also ~= '' then fields[3], fields[4] = 'also', also end
    if ends then fields[#fields + 1], fields[#fields + 2] = 'final', '1' end
    return pcall('XADD', log.key, 'NOMKSTREAM', 'MAXLEN', '~', log.keep, log.id, unpack(fields))
  elseif trims then
    return pcall('XADD', log.key, 'NOMKSTREAM', 'MAXLEN', '~', log.keep, log.id, 'event', event)
  end
  return pcall('XADD', log.key, 'NOMKSTREAM', log.id, 'event', event)
end

local function ended(log) return 'ENDED ' .. log.channel .. ' has ended' end

-- Appends an event to a log. ends says that the log ends with it. The result is the position, or
-- nil and the text of an error.
local function add(log, event, also, trims, ends)
  if log.err then return nil, log.err end
  if log.ended then return nil, ended(log) end
  local at = xadd(log, event, also, trims, ends)
  if not at or type(at) == 'table' and find(at.err, 'equal or smaller', 1, true) then
    begin(log)
    if log.err then return nil, log.err end
    if log.ended then return nil, ended(log) end
    at = xadd(log, event, also, trims, ends)
  end
  if type(at) ~= 'string' then
    log.err = at and at.err or 'the log went away'
    return nil, log.err
  end
  log.last, log.bytes = at, log.bytes + #event
  if ends then log.ended = at end
  return at
end

-- Trims a log to about its bound in bytes. For each sixteenth of the bound that was appended, the
-- hash has a mark: the number of the event at which that was so. What is before the 17th newest
-- mark goes. The result is for HSET.
local function trim(log)
  local step = math.max(log.most / 16, 1)
  local n = math.floor(log.bytes / step)
  if log.most == 0 or n == 0 then return {'bytes', number(log.bytes)} end
  log.bytes = log.bytes - n * step
  local marks, epoch, seq = {}, match(log.last, '(%d+)-(%d+)')
  for mark in string.gmatch(pcall('HGET', log.hash, 'marks') or '', '%d+') do marks[#marks + 1] = mark end
  for _ = 1, math.min(n, 17) do marks[#marks + 1] = seq end
  if #marks > 16 then
    local upto = math.min(tonumber(marks[#marks - 16]), seq - 1) -- The newest event stays.
    pcall('XTRIM', log.key, 'MINID', '~', epoch .. '-' .. number(upto + 1))
  end
  return {'bytes', number(log.bytes), 'marks', table.concat(marks, ' ', math.max(#marks - 15, 1))}
end

-- Writes into the hash what the appends of this call have changed, and other fields.
local function note(log, ...)
  if not log.ended and (log.most == 0 or log.bytes < log.most / 16) then -- The usual case.
    pcall('HSET', log.hash, 'bytes', number(log.bytes), 'last', log.prev, ...)
    return
  end
  local fields = trim(log)
  if log.ended then fields[#fields + 1], fields[#fields + 2] = 'ended', log.ended end
  fields[#fields + 1], fields[#fields + 2] = 'last', log.prev
  for _, field in ipairs({...}) do fields[#fields + 1] = field end
  pcall('HSET', log.hash, unpack(fields))
end
