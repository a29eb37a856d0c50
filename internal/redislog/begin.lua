-- What append.lua, read.lua and find.lua share. It stands in front of each of them.
--
-- Beside each log there is a hash. It is made with the log and lives as long, an hour at least.
--   epoch       the log's epoch
--   last        the last 8 characters of the id of the event that was appended last
--   ended       the position of the log's last event, if the log has ended
--   bytes, marks  how much was appended (see trim in append.lua)
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
