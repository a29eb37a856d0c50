-- What the scripts that write share; it stands in front of them.
--
-- Beside each log there is a hash. It is made with the log, lives as long, an hour at least, and has
--   epoch       of the log
--   last        the last 8 characters of the id of the event that was appended last
--   <producer>  what became of the producer's last call (see append.lua)

local pcall, find, match = redis.pcall, string.find, string.match

local hour = 3600000

local function number(n) return string.format('%.0f', n) end

local function millis()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The error of a server that must not be asked: a replica, which was a master perhaps. A write that
-- changes nothing tells. What else keeps a master from writing does not keep it from reading.
local function readonly(hash)
  local set = pcall('PEXPIRE', hash, 1, 'GT')
  if type(set) == 'table' and find(set.err, 'READONLY', 1, true) then return set end
end

-- Lets a log and its hash live for so many ms from now on, 0 for ever, the hash an hour at least, but
-- never shorter than they would anyway.
local function extend(key, hash, life)
  if life == '0' then
    pcall('PERSIST', hash)
    return pcall('PERSIST', key)
  end
  pcall('PEXPIRE', hash, tonumber(life) > hour and life or hour, 'GT')
  return pcall('PEXPIRE', key, life, 'GT')
end

-- Where a log ends, and its XINFO. A log that is not there begins, empty, with a new epoch: Redis'
-- time, but more than any epoch that the caller or the hash knows of. Or nil, and an error.
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
  local added = pcall('XADD', key, first, 'event', '') -- the first write: where memory is full, it is refused
  if type(added) ~= 'string' then return nil, added.err end
  pcall('XDEL', key, first)
  pcall('DEL', hash)
  pcall('HSET', hash, 'epoch', epoch)
  if life == '0' or tonumber(life) > hour then life = hour end -- until there is an event
  pcall('PEXPIRE', key, life)
  pcall('PEXPIRE', hash, hour)
  return first
end
